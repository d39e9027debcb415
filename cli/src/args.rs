//! The arguments of all commands.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};

use crate::remote;

/// Saves memory files and disk images as deduplicated, incremental snapshots.
///
/// A repository is a folder. Files are divided into blocks of 4 KiB. The repository compresses the blocks, and stores
/// equal blocks once, whatever files they are from. ID is the name of a snapshot, its id, or the first digits of its id
/// (at least 4).
#[derive(Parser, Debug)]
#[command(
    name = "memsnap",
    // Otherwise, the texts of Windows mix `memsnap.exe` with the `memsnap` of the examples.
    bin_name = "memsnap",
    version,
    after_help = "Exit codes: 0 done, 1 refused, failed or damaged, 2 wrong usage.\n\
        Results are printed to the standard output, messages and progress bars to the standard error."
)]
pub(crate) struct Cli {
    /// Print the result as one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Init(Init),
    Save(Save),
    List(List),
    Show(Show),
    Diff(Diff),
    Extract(Extract),
    Name(Name),
    Remove(Remove),
    Verify(Verify),
    Repair(Repair),
    Gc(Gc),
    Push(Push),
    Pull(Pull),
    Completions(Completions),
    Manual(Manual),
}

/// Make an empty repository in a folder
///
/// If the folder does not exist, the command makes it. If it exists, it must be empty.
#[derive(Args, Debug)]
pub(crate) struct Init {
    /// The folder
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
}

/// Save a file, a block device or the standard input as a snapshot
///
/// Prints the id of the snapshot. When the command ends, the snapshot is durable. Only blocks that the repository lacks
/// are stored, with or without a parent. Zeroes and holes are not stored.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    memsnap save repo base.mem --name base --attach vmstate=base.vmstate\n  \
    memsnap save repo diff.mem --parent base --diff --name warm\n  \
    zstd -dc core.zst | memsnap save repo - --label host=a7")]
pub(crate) struct Save {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The file to save; `-` for the standard input
    ///
    /// A pipe is copied to a temporary file first. Set TMPDIR to choose its folder.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Give the snapshot a name; a name that exists is moved
    #[arg(long, value_name = "N", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// The snapshot that this one was made from
    ///
    /// The manifest of the new snapshot lists only the blocks that differ from the parent. Without `--diff`, the whole
    /// file is read.
    #[arg(long, value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) parent: Option<String>,
    /// Use the bytes of the parent for the holes of the file
    ///
    /// This is how Firecracker writes diff snapshots. Holes are not read. A file without holes is refused, because a copy
    /// may have filled them with zeroes.
    #[arg(long, requires = "parent")]
    pub(crate) diff: bool,
    /// With `--diff`, save a file without holes too: all of its bytes replace those of the parent
    #[arg(long, requires = "diff")]
    pub(crate) allow_no_holes: bool,
    /// Save a small file with the snapshot, such as the state of the virtual machine
    #[arg(long, value_name = "NAME=FILE", value_parser = pair)]
    pub(crate) attach: Vec<(String, String)>,
    /// Add a label to the snapshot
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
}

/// List the snapshots, the oldest first
#[derive(Args, Debug)]
pub(crate) struct List {
    /// The repository: a folder, or the URL of an object store
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
}

/// Show the manifest of a snapshot, or write one of its attachments
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The snapshot
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// Write the bytes of this attachment to the standard output
    #[arg(long, value_name = "NAME")]
    pub(crate) attachment: Option<String>,
    /// Write the attachment to this file instead
    #[arg(long, short, value_name = "FILE", requires = "attachment", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
}

/// List the ranges of bytes in which two snapshots differ
///
/// The command compares the hashes of blocks, and reads no block. Ranges begin and end at multiples of 4,096.
#[derive(Args, Debug)]
pub(crate) struct Diff {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The first snapshot
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) a: String,
    /// The second snapshot
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) b: String,
}

/// Write a snapshot to a sparse file
///
/// If the file exists, it is replaced when the new file is complete.
#[derive(Args, Debug)]
pub(crate) struct Extract {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The snapshot
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// The file to write; `-` for the standard output
    ///
    /// For the standard output, the command writes a temporary file first. Set TMPDIR to choose its folder.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Share blocks with a file in the repository that is made first, where the file system can (Btrfs, XFS)
    ///
    /// Of use if the snapshot, or ones made from it, are extracted more than once: later calls write only what differs.
    /// `gc --cache` deletes the files in the repository.
    #[arg(long)]
    pub(crate) share: bool,
}

/// Give a snapshot a name, or delete a name
///
/// If the name exists, it moves to the snapshot. A snapshot can have several names.
#[derive(Args, Debug)]
#[command(
    override_usage = "memsnap name [OPTIONS] <REPO> <ID> <N>\n       memsnap name [OPTIONS] <REPO> --delete <N>"
)]
pub(crate) struct Name {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The snapshot
    #[arg(required_unless_present = "delete", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: Option<String>,
    /// The name
    #[arg(value_name = "N", required_unless_present = "delete", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// Delete this name; the snapshot stays
    #[arg(long, short, value_name = "N", conflicts_with_all = ["id", "name"])]
    pub(crate) delete: Option<String>,
}

/// Remove a snapshot and its names; `gc` frees the space
///
/// Snapshots that were made from it stay as they are. In an object store, the names stay, and stand for no snapshot
/// until they are moved.
#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// The repository: a folder, or the URL of an object store
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The snapshot
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
}

/// Check the repository; the exit code is 1 if there is damage
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// Also read all blocks and compare them with their hashes
    #[arg(long)]
    pub(crate) data: bool,
}

/// Rebuild the index from packs, manifests and names; the exit code is 1 if a file cannot be used
#[derive(Args, Debug)]
pub(crate) struct Repair {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
}

/// Delete the files that no snapshot needs
///
/// In an object store, this takes two calls: the first one marks the objects that no snapshot needs, and a later one
/// deletes objects that have been marked for the grace time.
#[derive(Args, Debug)]
pub(crate) struct Gc {
    /// The repository: a folder, or the URL of an object store
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// Keep files that are younger than this, such as 30m, 24h or 7d
    ///
    /// In an object store, this must be longer than a request can take, because a push may use such objects.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
    /// Only print what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also delete the files of snapshots that programs have mapped; the next mapping writes them again
    #[arg(long)]
    pub(crate) cache: bool,
}

/// Copy snapshots to an object store
///
/// Makes a repository in the object store if there is none. If a snapshot is given by its name, the name is also set in
/// the object store.
#[derive(Args, Debug)]
#[command(after_help = URLS)]
pub(crate) struct Push {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The URL of a repository in an object store
    #[arg(value_hint = ValueHint::Url)]
    pub(crate) url: String,
    /// The snapshots
    #[arg(value_name = "ID", required = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ids: Vec<String>,
}

/// Copy snapshots from an object store
///
/// If a snapshot is given by its name in the object store, the name is also set in the repository.
#[derive(Args, Debug)]
#[command(after_help = URLS)]
pub(crate) struct Pull {
    /// The repository
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) repo: PathBuf,
    /// The URL of a repository in an object store
    #[arg(value_hint = ValueHint::Url)]
    pub(crate) url: String,
    /// The snapshots
    #[arg(value_name = "ID", required = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ids: Vec<String>,
}

const URLS: &str = "URLs: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder\n\
    Environment variables set credentials and endpoints: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,\n\
    AWS_ENDPOINT, AWS_ALLOW_HTTP, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and\n\
    others; the documentation of the crate object_store lists them.";

/// Print a script with completions for a shell
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page, or write the pages of all commands to a folder
#[derive(Args, Debug)]
pub(crate) struct Manual {
    /// The folder; made if it does not exist
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

impl Cli {
    /// Checks the rules that attributes of clap cannot express.
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let usage = |message: &str| Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        if let Some(url) = self.command.folder().and_then(remote::url) {
            return usage(&format!(
                "{url} is a URL, and this command needs a repository in a folder; `list`, `remove` and `gc` take a URL \
                 too, `push` copies snapshots to a URL, and `pull` copies them from there to a folder"
            ));
        }
        match &self.command {
            Command::Save(save) => {
                for (option, pairs) in [("--attach", &save.attach), ("--label", &save.label)] {
                    if let Some(twice) = twice(pairs) {
                        return usage(&format!("{option} {twice}=... was given twice"));
                    }
                }
            }
            Command::Show(show) if self.json && show.attachment.is_some() => {
                return usage(
                    "--json cannot be used with --attachment, which writes the bytes of an attachment",
                );
            }
            Command::Extract(extract) if self.json && extract.file.as_os_str() == "-" => {
                return usage("--json cannot be used with the file `-`: both write to the standard output");
            }
            Command::Extract(extract) if extract.share && extract.file.as_os_str() == "-" => {
                return usage("--share cannot be used with the file `-`, which shares nothing");
            }
            Command::Completions(_) | Command::Manual(_) if self.json => {
                return usage("--json cannot be used with this command, which does not print JSON");
            }
            _ => {}
        }
        Ok(())
    }
}

impl Command {
    /// Returns the repository of a command that takes only a folder.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Init(args) => Some(&args.repo),
            Self::Save(args) => Some(&args.repo),
            Self::Show(args) => Some(&args.repo),
            Self::Diff(args) => Some(&args.repo),
            Self::Extract(args) => Some(&args.repo),
            Self::Name(args) => Some(&args.repo),
            Self::Verify(args) => Some(&args.repo),
            Self::Repair(args) => Some(&args.repo),
            Self::Push(args) => Some(&args.repo),
            Self::Pull(args) => Some(&args.repo),
            Self::List(_) | Self::Remove(_) | Self::Gc(_) | Self::Completions(_) | Self::Manual(_) => None,
        }
    }
}

/// Returns the first key that occurs twice.
fn twice(pairs: &[(String, String)]) -> Option<&str> {
    let mut seen = HashSet::new();
    pairs.iter().map(|(key, _)| key.as_str()).find(|key| !seen.insert(*key))
}

/// Parses `KEY=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, with a key that is not empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let cli = Cli::try_parse_from(line.split(' '))?;
        cli.check()?;
        Ok(cli)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_of_the_design_is_accepted() {
        for line in [
            "memsnap init repo",
            "memsnap save repo file",
            "memsnap save repo - --name n --parent base --diff --attach a=f --attach b=g --label k=v --label l=",
            "memsnap save repo file --parent base --diff --allow-no-holes",
            "memsnap list repo",
            "memsnap list s3://b/p",
            "memsnap remove s3://b/p base",
            "memsnap gc s3://b/p",
            "memsnap show repo base",
            "memsnap show repo base --attachment regs --output f",
            "memsnap diff repo a b",
            "memsnap extract repo base file",
            "memsnap extract repo base file --share",
            "memsnap name repo 1234 base",
            "memsnap name repo --delete base",
            "memsnap remove repo base",
            "memsnap verify repo --data",
            "memsnap repair repo",
            "memsnap gc repo --grace 24h --dry-run",
            "memsnap push repo s3://b/p a b c",
            "memsnap pull repo s3://b/p a",
            "memsnap --json list repo",
            "memsnap list repo --json",
            "memsnap completions bash",
            "memsnap manual",
            "memsnap manual dir",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "memsnap",
            "memsnap frobnicate",
            "memsnap init",
            "memsnap save repo file --diff",
            "memsnap save repo file --parent base --allow-no-holes",
            "memsnap save repo file --label k",
            "memsnap save repo file --label =v",
            "memsnap save repo file --label k=v --label k=w",
            "memsnap save repo file --attach a=f --attach a=g",
            "memsnap save repo file --name=",
            "memsnap show repo base --output f",
            "memsnap show repo base --attachment a --json",
            "memsnap extract repo base - --json",
            "memsnap extract repo base - --share",
            "memsnap name repo base",
            "memsnap name repo base n --delete n",
            "memsnap gc repo --grace 24",
            "memsnap gc repo --grace soon",
            "memsnap push repo s3://b/p",
            "memsnap init s3://b/p",
            "memsnap save s3://b/p file",
            "memsnap show s3://b/p base",
            "memsnap diff s3://b/p a b",
            "memsnap extract s3://b/p base file",
            "memsnap name s3://b/p base n",
            "memsnap verify s3://b/p",
            "memsnap repair file:///p",
            "memsnap push s3://b/p s3://b/p a",
            "memsnap pull s3://b/p s3://b/p a",
            "memsnap completions cmd",
            "memsnap manual --json",
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("{line} was accepted"));
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }

    #[test]
    fn pairs_and_durations_have_their_values() {
        let save = parse("memsnap save repo file --label k=a=b --label l=").unwrap();
        let Command::Save(save) = save.command else { panic!("{save:?}") };
        assert_eq!(save.label, [("k".into(), "a=b".into()), ("l".into(), String::new())]);

        for (text, seconds) in [("30m", 1_800), ("24h", 86_400), ("7d", 604_800), ("0s", 0)] {
            let gc = parse(&format!("memsnap gc repo --grace {text}")).unwrap();
            let Command::Gc(gc) = gc.command else { panic!("{gc:?}") };
            assert_eq!(gc.grace, Duration::from_secs(seconds), "{text}");
        }
    }
}
