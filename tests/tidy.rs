//! What each module must not know, as a test. The table is the architecture; a change to it is a decision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Who may name whom. Acyclic: a module names only those that stand before it.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("config", &["domain"]),
    ("telemetry", &["config"]),
    ("faults", &[]),
    ("child", &[]),
    ("store", &["domain"]),
    ("artifacts", &["domain", "faults"]),
    ("hub", &["domain", "artifacts", "child"]),
    ("kernels", &[]),
    ("layers", &["kernels"]),
    ("models", &["kernels", "layers"]),
    ("metrics", &["domain"]),
    ("heads", &["kernels", "layers", "models", "metrics"]),
    ("data", &["domain"]),
    ("optim", &["kernels", "layers"]),
    (
        "train",
        &[
            "domain",
            "faults",
            "artifacts",
            "kernels",
            "layers",
            "models",
            "metrics",
            "heads",
            "data",
            "optim",
        ],
    ),
    (
        "worker",
        &["domain", "config", "store", "artifacts", "child"],
    ),
    ("http", &["domain", "config", "store", "artifacts", "data"]),
    (
        "cli",
        &[
            "domain",
            "config",
            "telemetry",
            "store",
            "artifacts",
            "hub",
            "train",
            "worker",
            "http",
        ],
    ),
];

/// `chandler train`: the one file of `worker` that reaches the data plane.
const ENTRY: (&str, &[&str]) = ("worker/entry.rs", &["faults", "hub", "kernels", "train"]);

/// Crates that whole groups of modules never touch.
const FORBIDDEN_CRATES: &[(&[&str], &[&str])] = &[
    (
        &[
            "domain",
            "config",
            "store",
            "http",
            "artifacts",
            "hub",
            "data",
        ],
        &["candle_core", "candle_nn"],
    ),
    (
        &[
            "domain",
            "kernels",
            "layers",
            "models",
            "metrics",
            "heads",
            "data",
            "optim",
            "train",
            "artifacts",
        ],
        &["sqlx", "axum", "tokio", "reqwest"],
    ),
    (
        &["worker", "http", "artifacts", "hub", "data", "train", "cli"],
        &["sqlx"],
    ),
];

const MAX_LINES: usize = 600;

#[test]
fn modules_name_only_what_they_may() {
    let found = violations(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_module_is_in_the_table() {
    for path in sources().keys() {
        let module = module_of(path);
        if module != "lib" && module != "main" {
            assert!(
                MAY_NAME.iter().any(|(name, _)| *name == module),
                "{module} is in no row of the table"
            );
        }
    }
}

#[test]
fn a_planted_bad_edge_is_seen() {
    for (path, line) in [
        ("store/jobs.rs", "use crate::http::AppState;"),
        ("http/mod.rs", "use crate::{domain::JobId, train};"),
        ("train/step.rs", "let x = crate::worker::entry::run;"),
        ("worker/dispatcher.rs", "use crate::train;"),
        ("http/v1/jobs/get.rs", "use candle_core::Tensor;"),
        ("train/trainer.rs", "    tokio::spawn(async {});"),
        (
            "data/batch.rs",
            "unsafe { std::hint::unreachable_unchecked() }",
        ),
    ] {
        let planted = BTreeMap::from([(PathBuf::from(path), line.to_owned())]);
        assert_eq!(violations(&planted).len(), 1, "{path}: {line}");
    }
    let fine = BTreeMap::from([
        (
            PathBuf::from("worker/entry.rs"),
            "use crate::train;".to_owned(),
        ),
        (
            PathBuf::from("store/jobs.rs"),
            "use crate::domain::JobId;\n#[cfg(test)]\nmod tests {\n    use crate::http;\n}"
                .to_owned(),
        ),
    ]);
    assert!(violations(&fine).is_empty());
}

#[test]
fn files_stay_readable() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines: which two things is it?",
            path.display()
        );
    }
}

#[test]
fn the_top_level_stays_small() {
    const KNOWN: [&str; 10] = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "benches",
        "docker",
        "migrations",
        "openapi",
        "src",
        "tests",
    ];
    const OWN_SETTINGS: [&str; 2] = ["clippy.toml", "rustfmt.toml"];
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached"])
        .current_dir(root())
        .output();
    // A source archive has no git; there is nothing to check then.
    let Ok(output) = output else { return };
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        let top = path.split('/').next().unwrap_or_default();
        let known = KNOWN.contains(&top) || OWN_SETTINGS.contains(&top) || top.starts_with('.');
        assert!(known, "{top} does not belong at the top level");
    }
}

fn violations(sources: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources {
        let module = module_of(path);
        let code = without_tests(text);
        for named in crate_modules(&code) {
            if named != module && !may_name(path, &module, &named) {
                found.push(format!("{}: {module} names {named}", path.display()));
            }
        }
        for (modules, crates) in FORBIDDEN_CRATES {
            for name in *crates {
                if modules.contains(&module.as_str()) && names_crate(&code, name) {
                    found.push(format!("{}: {module} names {name}", path.display()));
                }
            }
        }
        if module != "kernels" && names_word(&code, "unsafe") {
            found.push(format!("{}: unsafe outside kernels", path.display()));
        }
    }
    found
}

fn may_name(path: &Path, module: &str, named: &str) -> bool {
    if module == "lib" || module == "main" {
        return true;
    }
    let entry = path.ends_with(ENTRY.0) && ENTRY.1.contains(&named);
    let table = MAY_NAME
        .iter()
        .any(|(name, allowed)| *name == module && allowed.contains(&named));
    entry || table
}

/// Modules named as `crate::x` or `crate::{x::…, y}`.
fn crate_modules(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && !c.is_whitespace() => {
                        named.push(identifier(&group[i..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            named.push(identifier(rest));
        }
    }
    named.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
    named.sort();
    named.dedup();
    named
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

fn names_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|w| w == word)
}

/// Code without comments and without test modules, which may look at anything.
fn without_tests(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str();
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file by its path under `src`, except files that are test modules as a whole.
fn sources() -> BTreeMap<PathBuf, String> {
    let src = root().join("src");
    let mut sources = BTreeMap::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test_file(&path) {
                let text = std::fs::read_to_string(&path).unwrap();
                sources.insert(path.strip_prefix(&src).unwrap().to_owned(), text);
            }
        }
    }
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

/// Files named so are included under `#[cfg(test)]`.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    name == "tests"
        || name.ends_with("_tests")
        || name == "oracle"
        || name == "testing"
        || path.components().any(|c| c.as_os_str() == "tests")
}
