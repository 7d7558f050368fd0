//! The bugs that are planted fit the source as it is now; that they are found, `--bin planted` shows,
//! which takes a build for each.

#[path = "../src/bin/planted/bugs.rs"]
mod bugs;

use std::collections::BTreeSet;
use std::path::Path;

use bugs::{BUGS, Finder};

#[test]
fn every_bug_has_its_place_in_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for bug in BUGS {
        for (file, from, to) in bug.edits {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            assert_eq!(text.matches(from).count(), 1, "{}: {file} has {from:?} not once", bug.name);
            assert_ne!(from, to, "{}", bug.name);
        }
    }
}

#[test]
fn there_are_twenty_bugs_and_each_is_known_by_its_name() {
    let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
    assert!(names.len() == BUGS.len() && names.len() >= 20, "{}", names.len());
    let readme = include_str!("../README.md");
    for bug in BUGS {
        assert!(readme.contains(bug.what), "sim/README.md does not have: {}", bug.what);
    }
}

#[test]
fn every_loom_model_that_is_to_find_a_bug_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let models: String = std::fs::read_dir(root.join("tests/loom"))
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap_or_default())
        .collect();
    for bug in BUGS {
        if let Finder::Loom(model) = bug.finder {
            assert!(models.contains(&format!("fn {model}(")), "{model}");
        }
    }
}
