//! `kvpipe bench collectives`, with so few and small operations that the figures mean nothing.

use serde_json::{Value, json};

use crate::python::python;
use crate::support::{Finished, Process, at_work, command_line, ended, run, signal};

const QUICK: &str = "bench collectives --seconds 0.002 --rounds 2";

const PYTHON: &str = "KVPIPE_TORCH_PYTHON";

async fn quick(options: &str) -> Finished {
    run(&format!("{QUICK} {options}")).await.exited(0)
}

/// The lines of figures, and those with details.
fn lines(finished: &Finished) -> (Vec<Value>, Vec<Value>) {
    finished.json().into_iter().partition(|line| line.get("detail").is_none())
}

fn details<'a>(details: &'a [Value], kind: &str) -> Vec<&'a Value> {
    details.iter().filter(|line| line["detail"] == kind).collect()
}

fn number(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or_else(|| panic!("{field} of {line}"))
}

/// Each of these is rounded to four digits.
#[track_caller]
fn assert_near(value: f64, expected: f64) {
    assert!((value / expected - 1.0).abs() < 0.01, "{value} is not {expected}");
}

/// Asserts that the figures agree with each other.
fn assert_agrees(line: &Value) {
    let result = match line["operation"].as_str() {
        Some("all_reduce") => number(line, "size"),
        _ => number(line, "size") * number(line, "ranks"),
    };
    assert_near(number(line, "GBps"), result / number(line, "us") / 1e3);
    assert_near(number(line, "limit_ratio"), number(line, "limit_us") / number(line, "us"));
}

#[tokio::test]
async fn each_operation_number_of_ranks_and_size_has_a_json_line() {
    let (figures, others) = lines(&quick("--ranks 2,3 --sizes 4,300000 --json").await);
    let mut expected = Vec::new();
    for ranks in [2, 3] {
        for operation in ["all_reduce", "all_gather"] {
            expected.extend([4, 300_000].map(|size| json!([operation, ranks, size])));
        }
    }
    let told: Vec<_> =
        figures.iter().map(|line| json!([line["operation"], line["ranks"], line["size"]])).collect();
    assert_eq!(told, expected);
    figures.iter().for_each(assert_agrees);
    for line in details(&others, "ways") {
        let ways: Vec<_> = line["ways"].as_array().unwrap().iter().map(|way| way["way"].as_str()).collect();
        for way in ["kvpipe", "one_thread", "two_threads"] {
            assert!(ways.contains(&Some(way)), "{line}");
        }
        for way in line["ways"].as_array().unwrap() {
            assert!(number(way, "fastest_us") <= number(way, "us"), "{line}");
            assert!(number(way, "us") <= number(way, "slowest_us"), "{line}");
        }
    }
    assert_eq!(details(&others, "ways").len(), figures.len());
}

#[tokio::test]
async fn the_best_way_of_the_bare_sockets_is_the_limit() {
    let (figures, others) = lines(&quick("--ranks 2 --sizes 1MiB --operations all_reduce --json").await);
    let ways = details(&others, "ways")[0]["ways"].as_array().unwrap();
    let bare = ways.iter().filter(|way| way["way"].as_str().unwrap().contains("thread"));
    let best = bare.map(|way| number(way, "us")).fold(f64::INFINITY, f64::min);
    assert_eq!(number(&figures[0], "limit_us").to_bits(), best.to_bits());
}

#[tokio::test]
async fn without_torch_gloo_is_skipped_and_the_rest_measured() {
    let options = format!("{QUICK} --ranks 2 --sizes 1KiB");
    for (python, why) in [
        (None, "KVPIPE_TORCH_PYTHON does not name a python with torch"),
        (Some("/nowhere/python"), "KVPIPE_TORCH_PYTHON=/nowhere/python: No such file"),
        // Succeeds at nothing, and says nothing.
        (Some("false"), "KVPIPE_TORCH_PYTHON=false: it fails and says nothing"),
    ] {
        let environment: Vec<_> = python.map(|python| (PYTHON, python)).into_iter().collect();
        let finished = Process::start_with(&options, &environment).finish().await.exited(0);
        let text = finished.stdout.join("\n");
        for part in [&format!("skipped: gloo: {why}"), "all_reduce", "all_gather"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("ahead of gloo"), "{text}");

        let finished =
            Process::start_with(&format!("{options} --json"), &environment).finish().await.exited(0);
        let (figures, others) = lines(&finished);
        assert!(figures.iter().all(|line| line["gloo_us"].is_null() && line["gloo_ratio"].is_null()));
        let skipped = details(&others, "skipped");
        assert_eq!(skipped[0]["what"], "gloo");
        assert!(skipped[0]["why"].as_str().unwrap().starts_with(why), "{skipped:?}");
    }
}

#[tokio::test]
async fn with_torch_gloo_is_measured_in_the_same_run() {
    if python().is_none() {
        return;
    }
    let python = std::env::var(PYTHON).unwrap();
    let line = format!("{QUICK} --ranks 3 --sizes 1KiB,300000 --json");
    let finished = Process::start_with(&line, &[(PYTHON, &python)]).finish().await.exited(0);
    let (figures, others) = lines(&finished);
    assert!(details(&others, "gloo")[0]["version"].as_str().unwrap().starts_with("gloo of torch 2."));
    for line in &figures {
        assert_agrees(line);
        assert_near(number(line, "gloo_ratio"), number(line, "gloo_us") / number(line, "us"));
    }
    assert_eq!(figures.len(), 4);
    let ahead = figures.iter().filter(|line| number(line, "gloo_ratio") > 1.0).count();
    assert_eq!(
        details(&others, "ahead_of_gloo"),
        [&json!({"detail": "ahead_of_gloo", "ahead": ahead, "figures": 4})]
    );
}

#[tokio::test]
async fn people_get_a_table_and_no_json() {
    let finished = quick("--ranks 2 --sizes 4,64KiB").await;
    let text = finished.stdout.join("\n");
    for part in ["OPERATION", "X GLOO", "X LIMIT", "all_reduce", "all_gather", " 4 B ", "64 KiB"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('{'), "{text}");
    let longest = finished.stdout.iter().map(|line| line.chars().count()).max();
    assert!(longest <= Some(110), "{text}");
}

#[tokio::test]
async fn arguments_that_cant_be_are_refused() {
    for (options, quoted) in [
        ("--sizes 1022", "1022 B are not a whole number of f32"),
        ("--sizes 2GiB --ranks 4", "2 GiB from each of 4 ranks are over 4 GiB"),
        ("--sizes 0", "at least 1 byte"),
        ("--ranks 1", "--ranks"),
        ("--operations all_the_best", "all_the_best"),
        ("--rounds 0", "--rounds"),
        ("--transport memory", "--transport"),
    ] {
        let finished = run(&format!("bench collectives {options}")).await.exited(2).says(&[quoted]);
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
    run("bench --rounds 1 collectives").await.exited(2).says(&["collectives"]);
}

/// One that would go on for an hour, and is in the middle of it; its ranks.
async fn endless() -> (Process, Vec<u32>) {
    let bench = Process::start("bench collectives --ranks 2 --sizes 1MiB --rounds 1000 --seconds 4");
    let children = bench.grows(2).await;
    for child in children.iter().copied() {
        at_work(child).await;
    }
    (bench, children)
}

#[tokio::test]
async fn a_killed_rank_is_named_and_the_others_end() {
    let (bench, children) = endless().await;
    let rank = |child| command_line(child).split_once("--rank ").map(|(_, rest)| rest[..1].to_owned());
    let victim = children[0];
    let name = rank(victim).unwrap();
    signal(victim, "KILL").await;
    bench.finish().await.exited(1).says(&[&format!("rank {name} of kvpipe failed (signal: 9")]);
    for child in children {
        assert_eq!(command_line(child), "");
    }
}

#[tokio::test]
async fn a_signal_ends_all_ranks() {
    let (bench, children) = endless().await;
    bench.signal("TERM").await;
    bench.finish().await.exited(1).says(&["stopped by SIGTERM"]);
    for child in children {
        assert_eq!(command_line(child), "");
    }
}

#[tokio::test]
async fn a_killed_parent_leaves_no_orphan() {
    let (bench, children) = endless().await;
    bench.signal("KILL").await;
    for child in children {
        ended(child).await;
    }
}
