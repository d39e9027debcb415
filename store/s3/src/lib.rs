//! An S3 server for tests: [`Server`] serves a temporary folder on a local port.
#![deny(unsafe_code)]

use std::io;
use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use memsnap_store::RemoteOptions;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const BUCKET: &str = "bucket";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// An S3 server with one bucket. It stops and deletes its objects when it is dropped.
///
/// # Examples
///
/// ```
/// use memsnap_store::Remote;
/// use memsnap_store_s3::Server;
///
/// let server = Server::start();
/// let remote = Remote::create(&server.url(), &server.options())?;
/// assert!(remote.honours_conditions()?);
/// # Ok::<(), memsnap_store::Error>(())
/// ```
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// `None` only during the drop.
    runtime: Option<Runtime>,
    _folder: TempDir,
}

impl Server {
    /// Starts a server on a free port, with its own threads.
    ///
    /// # Panics
    ///
    /// Panics if the system does not provide a folder, threads or a port.
    #[must_use]
    pub fn start() -> Self {
        match Self::try_start() {
            Ok(server) => server,
            Err(error) => panic!("cannot start an S3 server: {error}"),
        }
    }

    fn try_start() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(BUCKET))?;
        let files = FileSystem::new(folder.path()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, service.build()));
        Ok(Self { address, runtime: Some(runtime), _folder: folder })
    }

    /// Returns the URL of a repository in the bucket.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("repository")
    }

    /// Returns the URL of a repository with another prefix.
    #[must_use]
    pub fn url_of(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Returns options with the address and the credentials of the server.
    #[must_use]
    pub fn options(&self) -> RemoteOptions {
        Self::options_of(&self.address())
    }

    /// Returns the address of the server, to pass it to another process.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns the options of the server at an address, which may be in another process.
    #[must_use]
    pub fn options_of(address: &str) -> RemoteOptions {
        RemoteOptions::new()
            .set("endpoint", format!("http://{address}"))
            .set("region", "us-east-1")
            .set("access_key_id", KEY)
            .set("secret_access_key", SECRET)
            .set("allow_http", "true")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let http = Builder::new(TokioExecutor::new());
    // An error of `accept` concerns one connection only.
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            // The client gets errors of its connection.
            let _ = connection.await;
        });
    }
}
