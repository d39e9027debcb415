//! Names, lists, removal, collection, verification and repair, as text and as JSON.

mod kit;

use kit::{BLOCK, BLOCK_LEN, Bench, noise, stderr};
use serde_json::{Value, json};

const LEN: u64 = 64 * BLOCK;

/// Makes a repository with the snapshots `base` and `child`.
fn with_two() -> (Bench, String, String) {
    let bench = Bench::with_repository();
    let mut image = noise(1, LEN);
    std::fs::write(bench.path("image"), &image).unwrap();
    let base = bench.save(&["image", "--name", "base", "--label", "host=a7", "--label", "empty="]);
    image[..BLOCK_LEN].copy_from_slice(&noise(2, BLOCK));
    std::fs::write(bench.path("image"), &image).unwrap();
    std::fs::write(bench.path("state"), "registers").unwrap();
    let child = bench.save(&["image", "--name", "child", "--parent", "base", "--attach", "regs=state"]);
    (bench, base, child)
}

/// Returns the keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn the_list_has_all_snapshots() {
    let (bench, base, child) = with_two();
    let document = bench.json(&["list", "repo"]);
    assert_eq!(keys(&document), ["snapshots"]);
    let snapshots = document["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 2);
    for snapshot in snapshots {
        assert_eq!(keys(snapshot), ["content_len", "created", "id", "len", "names", "parent", "stored"]);
        assert_eq!(snapshot["len"], json!(LEN));
        assert_eq!(snapshot["content_len"], json!(LEN));
        let created = snapshot["created"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(created).is_ok() && created.ends_with('Z'), "{created}");
    }
    assert_eq!(snapshots[0]["id"], json!(base));
    assert_eq!(snapshots[0]["names"], json!(["base"]));
    assert_eq!(snapshots[0]["parent"], Value::Null);
    assert!(snapshots[0]["stored"].as_u64().unwrap() >= LEN);
    assert_eq!(snapshots[1]["parent"], json!(base));
    let stored = snapshots[1]["stored"].as_u64().unwrap();
    assert!((BLOCK..4 * BLOCK).contains(&stored), "{stored}");

    let table = bench.ok(&["list", "repo"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3);
    let heads: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(heads, ["ID", "NAMES", "CREATED", "LENGTH", "STORED", "PARENT"]);
    assert!(lines[1].starts_with(&base[..12]) && lines[1].contains(" base "), "{table}");
    assert!(lines[2].starts_with(&child[..12]) && lines[2].ends_with(&base[..12]), "{table}");
    assert_eq!(lines[0].find("PARENT"), lines[2].find(&base[..12]), "{table}");
}

#[test]
fn show_has_all_of_a_manifest() {
    let (bench, base, child) = with_two();
    let document = bench.json(&["show", "repo", "base"]);
    let all = [
        "attachments",
        "base",
        "blocks",
        "content_len",
        "created",
        "id",
        "labels",
        "len",
        "names",
        "parent",
        "stored",
    ];
    assert_eq!(keys(&document), all);
    assert_eq!(document["labels"], json!({"host": "a7", "empty": ""}));
    assert_eq!(document["attachments"], json!([]));
    assert_eq!(document["blocks"], json!(LEN / BLOCK));
    let document = bench.json(&["show", "repo", &child[..10]]);
    assert_eq!(document["id"], json!(child));
    assert_eq!(document["attachments"], json!([{"name": "regs", "len": 9}]));
    assert_eq!(document["parent"], json!(base));

    let text = bench.ok(&["show", "repo", "base"]);
    for line in
        [&format!("id          {base}"), "names       base", "label       host=a7", "parent      none"]
    {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    let text = bench.ok(&["show", "repo", "child"]);
    assert!(text.contains("attachment  regs: 9 bytes (9 B)\n"), "{text}");
}

#[test]
fn names_move_and_vanish() {
    let (bench, base, child) = with_two();
    assert_eq!(bench.json(&["name", "repo", &base, "current"]), json!({"name": "current", "id": base}));
    assert_eq!(bench.json(&["name", "repo", "child", "current"]), json!({"name": "current", "id": child}));
    assert_eq!(bench.json(&["show", "repo", "current"])["id"], json!(child));
    assert_eq!(bench.json(&["name", "repo", "--delete", "current"]), json!({"name": "current", "id": null}));
    bench.refused(&["show", "repo", "current"]);
    assert_eq!(bench.json(&["show", "repo", "child"])["id"], json!(child));
}

#[test]
fn what_was_removed_is_collected() {
    let (bench, base, child) = with_two();
    std::fs::write(bench.path("image"), noise(3, LEN)).unwrap();
    let third = bench.save(&["image"]);
    assert_eq!(bench.json(&["remove", "repo", &third[..16]]), json!({"id": third}));
    bench.refused(&["show", "repo", &third]);

    let nothing = bench.json(&["gc", "repo", "--grace", "1h", "--dry-run"]);
    assert_eq!(keys(&nothing), ["bytes", "dry_run", "manifests", "packs", "repacked"]);
    assert_eq!(nothing["packs"], json!(0), "it is younger than an hour");

    let packs = bench.files("packs").len();
    let planned = bench.json(&["gc", "repo", "--grace", "0s", "--dry-run"]);
    assert_eq!(planned["dry_run"], json!(true));
    let printed = bench.ok(&["gc", "repo", "--grace", "0s", "--dry-run"]);
    assert!(printed.starts_with("would delete 1 manifest and 1 pack, would rewrite 0 packs; "), "{printed}");
    assert_eq!(bench.files("packs").len(), packs, "nothing is deleted yet");
    let collected = bench.json(&["gc", "repo", "--grace", "0s"]);
    assert_eq!(collected["dry_run"], json!(false));
    assert_eq!(collected["manifests"], json!(1));
    assert_eq!(collected["packs"], json!(1));
    assert!(collected["bytes"].as_u64().unwrap() >= LEN);
    assert_eq!(planned["packs"], collected["packs"]);
    assert_eq!(bench.files("packs").len(), packs - 1);

    assert_eq!(bench.json(&["verify", "repo", "--data"])["intact"], json!(true));
    for id in [base, child] {
        assert_eq!(bench.json(&["show", "repo", &id])["id"], json!(id));
    }
}

#[test]
fn verify_says_what_is_damaged_and_exits_with_1() {
    let (bench, _, _) = with_two();
    let document = bench.json(&["verify", "repo", "--data"]);
    assert_eq!(keys(&document), ["blocks", "intact", "manifests", "packs", "problems"]);
    assert_eq!(document["intact"], json!(true));
    assert_eq!(document["manifests"], json!(2));
    assert_eq!(document["blocks"], json!(LEN / BLOCK + 1));
    assert!(bench.ok(&["verify", "repo"]).ends_with(": no damage\n"));

    let pack = bench.files("packs").into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    let mut writable = pack.metadata().unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)] // The file is deleted at the end of the test.
    writable.set_readonly(false);
    std::fs::set_permissions(&pack, writable).unwrap();
    std::fs::write(&pack, &bytes).unwrap();

    let output = bench.run(&["verify", "repo", "--data", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["intact"], json!(false));
    let problems = document["problems"].as_array().unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(problems.iter().any(|problem| problem.as_str().unwrap().contains(&name[..12])), "{problems:?}");
    assert!(stderr(&output).contains("repo is damaged"), "{}", stderr(&output));

    let output = bench.run(&["verify", "repo", "--data"]);
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().count(), problems.len() + 1, "{printed}");

    let message = bench.refused(&["extract", "repo", "base", "out"]);
    assert!(message.contains("damaged"), "{message}");
    assert!(!bench.path("out").exists());
}

#[test]
fn repair_rebuilds_the_index() {
    let (bench, base, child) = with_two();
    std::fs::remove_file(bench.path("repo/index.redb")).unwrap();
    let document = bench.json(&["repair", "repo"]);
    assert_eq!(document, json!({"manifests": 2, "packs": 2, "names": 2, "problems": []}));
    assert_eq!(bench.json(&["show", "repo", "base"])["id"], json!(base));
    bench.ok(&["extract", "repo", &child, "out"]);
    assert!(bench.read("out") == bench.read("image"));
    assert!(
        bench.ok(&["repair", "repo"]).starts_with("rebuilt the index from 2 manifests, 2 packs, 2 names")
    );
}

#[test]
fn processes_use_one_repository_at_the_same_time() {
    let bench = Bench::with_repository();
    let mut children = Vec::new();
    for writer in 0..4u64 {
        let name = format!("image{writer}");
        std::fs::write(bench.path(&name), noise(writer + 10, LEN)).unwrap();
        let args = ["save", "repo", &name, "--name", &name];
        children.push(bench.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap());
        assert!(bench.json(&["list", "repo"])["snapshots"].as_array().unwrap().len() <= 4);
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for writer in 0..4 {
        let name = format!("image{writer}");
        bench.ok(&["extract", "repo", &name, "out"]);
        assert!(bench.read("out") == bench.read(&name), "{name}");
    }
    assert_eq!(bench.json(&["verify", "repo", "--data"])["manifests"], json!(4));
}

#[test]
fn a_result_that_nobody_reads_is_still_done() {
    let (bench, _, _) = with_two();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        bench.command(&["save", "repo", "state", "--name", "unread"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    bench.ok(&["show", "repo", "unread"]);
}
