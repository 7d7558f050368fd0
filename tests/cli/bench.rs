//! `kvpipe bench`, with so few and small items that the figures mean nothing and come at once.

use serde_json::{Value, json};

use crate::support::{Finished, Process, at_work, command_line, ended, run, signal};
#[cfg(feature = "plot")]
use crate::support::{directory, text};

const QUICK: &str = "bench --seconds 0.005 --rounds 2 --buffer-size 256KiB";

async fn quick(options: &str) -> Finished {
    run(&format!("{QUICK} {options}")).await.exited(0)
}

/// The lines of sizes, and those with details.
fn lines(finished: &Finished) -> (Vec<Value>, Vec<Value>) {
    finished.json().into_iter().partition(|line| line.get("detail").is_none())
}

fn number(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or_else(|| panic!("{field} of {line}"))
}

fn detail<'a>(details: &'a [Value], kind: &str) -> &'a Value {
    details.iter().find(|line| line["detail"] == kind).unwrap_or_else(|| panic!("no {kind} in {details:?}"))
}

/// Asserts the agreed fields, and that they agree with each other.
fn assert_size_line(line: &Value, transport: &str, size: usize) {
    let fields: Vec<&String> = line.as_object().unwrap().keys().collect();
    let mut expected = ["transport", "size", "items", "GBps", "limit_GBps", "ratio", "p50_us", "p99_us"];
    expected.sort_unstable();
    assert_eq!(fields, expected, "{line}");
    assert_eq!((&line["transport"], &line["size"]), (&json!(transport), &json!(size)));
    let quotient = number(line, "GBps") / number(line, "limit_GBps");
    // Each of the three is rounded to four digits.
    assert!((number(line, "ratio") / quotient - 1.0).abs() < 0.01, "{line}");
    for field in ["items", "GBps", "limit_GBps", "p50_us"] {
        assert!(number(line, field) > 0.0, "{field} of {line}");
    }
    assert!(number(line, "p50_us") <= number(line, "p99_us"), "{line}");
}

#[tokio::test]
async fn each_size_over_tcp_has_a_json_line_with_the_agreed_fields() {
    let (sizes, details) = lines(&quick("--sizes 100,256KiB,300000 --json").await);
    for (line, size) in sizes.iter().zip([100, 256 << 10, 300_000]) {
        assert_size_line(line, "tcp", size);
    }
    assert_eq!(sizes.len(), 3);
    assert_eq!(detail(&details, "size")["size"], 100);
    assert!(number(detail(&details, "nones"), "items_per_second") > 0.0);
    let round_trip = detail(&details, "round_trip");
    assert_eq!(round_trip["size"], 64);
    let quotient = number(round_trip, "p50_us") / number(round_trip, "limit_p50_us");
    assert!((number(round_trip, "ratio") / quotient - 1.0).abs() < 0.01, "{round_trip}");
}

#[tokio::test]
async fn the_limit_is_the_best_of_the_read_sizes() {
    let (sizes, details) = lines(&quick("--sizes 300000 --json").await);
    let limits = detail(&details, "size")["limits"].as_array().unwrap();
    let caps: Vec<_> = limits.iter().map(|limit| limit["read_cap"].as_u64()).collect();
    // A cap of 1 MiB would be none.
    assert_eq!(caps, [None, Some(64 << 10), Some(256 << 10)]);
    let best = limits.iter().map(|limit| number(limit, "GBps")).fold(0.0, f64::max);
    assert_eq!(number(&sizes[0], "limit_GBps").to_bits(), best.to_bits());
}

#[tokio::test]
async fn the_peak_memory_of_both_processes_is_told_where_the_system_knows_it() {
    let (_, details) = lines(&quick("--sizes 64KiB --json").await);
    let memory = detail(&details, "memory");
    assert_eq!(memory["buffer_bytes"], 256 << 10);
    for end in ["sender_peak_bytes", "receiver_peak_bytes"] {
        // Below it, the buffers were not filled.
        assert!(number(memory, end) > f64::from(256 << 10), "{memory}");
    }
}

#[tokio::test]
async fn each_size_in_memory_has_a_json_line_with_the_agreed_fields() {
    let (sizes, details) = lines(&quick("--transport memory --sizes 1,4KiB --json").await);
    for (line, size) in sizes.iter().zip([1, 4096]) {
        assert_size_line(line, "memory", size);
    }
    assert_eq!(sizes.len(), 2);
    assert!(number(detail(&details, "nones"), "limit_items_per_second") > 0.0);
}

#[tokio::test]
async fn people_get_a_table_and_no_json() {
    for (transport, limit) in [("tcp", "SOCKET READS"), ("memory", "CHANNEL P50")] {
        let finished = quick(&format!("--sizes 5000,64KiB --transport {transport}")).await;
        let text = finished.stdout.join("\n");
        for part in [limit, "RATIO", "P99 US", "5 KB", "64 KiB", "items without payload"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains('{'), "{text}");
        let longest = finished.stdout.iter().map(|line| line.chars().count()).max();
        assert!(longest <= Some(110), "{text}");
    }
}

#[tokio::test]
async fn arguments_that_cant_be_are_refused() {
    for (options, quoted) in [
        ("--sizes 0", "at least 1 byte"),
        ("--sizes 4096,,1", "--sizes"),
        ("--sizes 4096,big", "big"),
        ("--sizes 4096,5GiB", "5 GiB are over the limit of 4 GiB"),
        ("--transport carrier-pigeon", "carrier-pigeon"),
        ("--rounds 0", "--rounds"),
        ("--seconds 0", "--seconds"),
        ("--buffer-size 0", "--buffer-size"),
    ] {
        let finished = run(&format!("bench {options}")).await.exited(2).says(&[quoted]);
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

/// One that would go on for an hour, and is in the middle of it; its receiver and its sender.
async fn endless() -> (Process, [u32; 2]) {
    let bench = Process::start("bench --sizes 1MiB --rounds 1000 --seconds 1 --buffer-size 16MiB");
    let mut children = bench.grows(2).await;
    while children.iter().any(|&child| !command_line(child).contains("--role")) {
        tokio::task::yield_now().await;
    }
    children.sort_by_key(|&child| command_line(child).contains("--role send"));
    for child in children.iter().copied() {
        at_work(child).await;
    }
    (bench, [children[0], children[1]])
}

#[tokio::test]
async fn a_killed_process_is_named_and_the_other_ends() {
    for (victim, name) in [(0, "the receiver"), (1, "the sender")] {
        let (bench, children) = endless().await;
        signal(children[victim], "KILL").await;
        bench.finish().await.exited(1).says(&[&format!("kvpipe: error: {name} failed (signal: 9")]);
        for child in children {
            assert_eq!(command_line(child), "");
        }
    }
}

#[tokio::test]
async fn a_signal_ends_both_processes() {
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

#[cfg(not(feature = "plot"))]
#[tokio::test]
async fn a_plot_without_the_feature_is_refused_with_its_name() {
    let finished = run("bench --plot x.svg").await.exited(2).says(&["feature \"plot\"", "--features plot"]);
    assert!(finished.stdout.is_empty(), "{finished:?}");
}

#[cfg(feature = "plot")]
#[tokio::test]
async fn a_plot_is_a_well_formed_svg_with_both_curves() {
    let directory = directory();
    for transport in ["tcp", "memory"] {
        let path = directory.path().join(format!("{transport}.svg"));
        quick(&format!("--sizes 64KiB,4KiB --transport {transport} --plot {}", text(&path))).await;
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_well_formed(&svg);
        for part in ["64 KiB", " %", "item size"] {
            assert!(svg.contains(part), "{part:?} is not in {svg}");
        }
    }
}

/// Asserts that tags are closed in order, and that no text has a bare `<`.
#[cfg(feature = "plot")]
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        assert!(!text.contains('>') && tag.matches('"').count().is_multiple_of(2), "{part}");
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{part}"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().expect("a name")),
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[cfg(feature = "plot")]
#[tokio::test]
async fn a_plot_that_cant_be_written_is_found_before_anything_is_measured() {
    let directory = directory();
    let missing = text(&directory.path().join("missing/plot.svg"));
    for path in [missing, text(directory.path())] {
        let finished =
            run(&format!("bench --plot {path}")).await.exited(1).says(&["kvpipe: error: writing", &path]);
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

#[cfg(feature = "plot")]
#[tokio::test]
async fn a_benchmark_that_fails_leaves_no_empty_plot() {
    let directory = directory();
    let path = directory.path().join("plot.svg");
    let bench = Process::start(&format!("bench --rounds 1000 --seconds 1 --plot {}", text(&path)));
    bench.grows(2).await;
    assert!(path.exists());
    bench.signal("TERM").await;
    bench.finish().await.exited(1);
    assert!(!path.exists());
}
