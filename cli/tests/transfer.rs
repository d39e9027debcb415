//! Copies snapshots from one repository to another through a folder that is used as an object store.

mod kit;

use kit::{BLOCK, BLOCK_LEN, Bench, noise};
use serde_json::json;

const LEN: u64 = 256 * BLOCK;

/// Returns the URL of a folder.
fn url(bench: &Bench, folder: &str) -> String {
    let path = bench.path(folder).display().to_string().replace('\\', "/");
    format!("file:///{}", path.trim_start_matches('/'))
}

/// Makes the snapshots `base` and `child`, of which 2 blocks differ, and the empty repository `other`.
fn with_two() -> (Bench, String, String) {
    let bench = Bench::with_repository();
    let mut image = noise(1, LEN);
    std::fs::write(bench.path("base.mem"), &image).unwrap();
    let base = bench.save(&["base.mem", "--name", "base"]);
    image[..2 * BLOCK_LEN].copy_from_slice(&noise(2, 2 * BLOCK));
    std::fs::write(bench.path("child.mem"), &image).unwrap();
    std::fs::write(bench.path("state"), "registers").unwrap();
    let child = bench.save(&["child.mem", "--name", "child", "--parent", "base", "--attach", "regs=state"]);
    bench.ok(&["init", "other"]);
    (bench, base, child)
}

#[test]
fn a_snapshot_moves_with_its_name_and_its_attachments() {
    let (bench, base, child) = with_two();
    let url = url(&bench, "bucket");
    let pushed = bench.json(&["push", "repo", &url, "base", &child]);
    assert_eq!(pushed["snapshots"][0]["id"], json!(base));
    assert_eq!(pushed["snapshots"][0]["name"], json!("base"));
    assert_eq!(pushed["snapshots"][0]["blocks"], json!(LEN / BLOCK));
    assert_eq!(pushed["snapshots"][1]["id"], json!(child));
    assert_eq!(pushed["snapshots"][1]["name"], json!(null), "it was not given by its name");
    assert_eq!(pushed["snapshots"][1]["blocks"], json!(2));
    let again = bench.json(&["push", "repo", &url, "child"]);
    assert_eq!(again["snapshots"][0]["blocks"], json!(0));

    let pulled = bench.json(&["pull", "other", &url, "child"]);
    assert_eq!(pulled["snapshots"][0]["id"], json!(child));
    assert_eq!(pulled["snapshots"][0]["name"], json!("child"));
    bench.ok(&["extract", "other", "child", "out"]);
    assert!(bench.read("out") == bench.read("child.mem"));
    assert_eq!(bench.ok(&["show", "other", "child", "--attachment", "regs"]), "registers");
    assert_eq!(bench.json(&["verify", "other", "--data"])["intact"], json!(true));

    let printed = bench.ok(&["pull", "other", &url, "base"]);
    assert!(printed.starts_with(&format!("{base} base: ")) && printed.ends_with(" received\n"), "{printed}");
}

#[test]
fn a_wrong_id_is_refused_before_anything_is_sent() {
    let (bench, _, _) = with_two();
    let message = bench.refused(&["push", "repo", &url(&bench, "bucket"), "base", "bass"]);
    assert!(message.contains("bass"), "{message}");
    assert!(!bench.path("bucket").exists());
}

#[test]
fn what_was_copied_before_a_failure_stays_and_is_printed() {
    let (bench, base, _) = with_two();
    let url = url(&bench, "bucket");
    bench.ok(&["push", "repo", &url, "base"]);
    let output = bench.run(&["pull", "other", &url, "base", "bass"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(kit::stderr(&output).contains("bass"), "{}", kit::stderr(&output));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with(&format!("{base} base: ")));
    assert_eq!(bench.json(&["show", "other", "base"])["id"], json!(base));
}

#[test]
fn an_object_store_that_cannot_be_used_is_named() {
    let (bench, _, _) = with_two();
    let url = url(&bench, "nothing");
    let message = bench.refused(&["pull", "other", &url, "base"]);
    assert!(message.contains("nothing"), "{message}");
    let message = bench.refused(&["push", "repo", "gopher://host/path", "base"]);
    assert!(message.contains("gopher"), "{message}");
}

/// The error told the user to choose another name, which `pull` does not allow.
#[test]
fn a_name_that_the_destination_cannot_have_is_no_obstacle() {
    let (bench, base, child) = with_two();
    let url = url(&bench, "bucket");
    bench.ok(&["push", "repo", &url, "base", "child"]);
    bench.ok(&["pull", "other", &url, &child]);
    bench.ok(&["name", "other", &child, "Base"]);
    let message = bench.refused(&["pull", "other", &url, "base"]);
    assert!(message.contains("\"Base\"") && message.contains(&format!("give its id: {base}")), "{message}");
    bench.ok(&["pull", "other", &url, &base]);
    // The name in the object store is one that the other repository's name differs from in case.
    let message = bench.refused(&["push", "other", &url, "Base"]);
    assert!(message.contains(&format!("give its id: {child}")), "{message}");
    bench.ok(&["push", "other", &url, &child]);
}
