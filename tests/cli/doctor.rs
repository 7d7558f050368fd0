//! `kvpipe doctor`.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::built;
use crate::support::{Finished, Process, directory, text};

/// The one variable that names a library. Without it this machine's own would be found.
fn environment(nccl: &str) -> Vec<(&str, &str)> {
    vec![("KVPIPE_NCCL_SO_PATH", nccl)]
}

async fn doctor(options: &str, environment: &[(&str, &str)]) -> Finished {
    Process::start_with(&format!("doctor {options}"), environment).finish().await
}

/// The line of a doctor that succeeded.
async fn examined(environment: &[(&str, &str)]) -> Value {
    line(&doctor("--json", environment).await.exited(0))
}

fn line(finished: &Finished) -> Value {
    let [line] = &finished.json()[..] else { panic!("one line is expected: {finished:?}") };
    line.clone()
}

/// The problems with `subject`: what they are; each says what it costs and what to do.
fn problems(line: &Value, subject: &str) -> Vec<String> {
    let all = line["problems"].as_array().unwrap();
    let all = all.iter().filter(|problem| problem["subject"] == subject).map(|problem| {
        for part in ["costs", "remedy"] {
            assert!(problem[part].as_str().is_some_and(|text| text.len() > 10), "{part} of {problem}");
        }
        format!("{}: {}", problem["state"].as_str().unwrap(), problem["what"].as_str().unwrap())
    });
    all.collect()
}

#[tokio::test]
async fn a_machine_without_nccl_is_well_if_the_default_job_runs() {
    let line = examined(&environment("/nowhere/nccl.so")).await;
    assert_eq!(line["default_job"]["ok"], true);
    assert_eq!(problems(&line, "default_job"), [""; 0]);
    assert_eq!(line["nccl"], Value::Null);
    assert_eq!(
        problems(&line, "nccl"),
        ["missing: /nowhere/nccl.so (from KVPIPE_NCCL_SO_PATH): cannot open shared object file: \
          No such file or directory"]
    );
    assert_eq!(line["kvpipe"], env!("CARGO_PKG_VERSION"));
    let memory = &line["memory"];
    assert!(
        memory["total_bytes"].as_u64().unwrap() > memory["available_bytes"].as_u64().unwrap(),
        "{memory}"
    );
}

#[tokio::test]
async fn a_library_is_shown_with_its_version_its_path_and_what_it_lacks() {
    let directory = directory();
    let file = text(&built::library(&directory.path().join("old.so"), 21805, &built::SYMBOLS[25..]));
    let line = examined(&environment(&file)).await;
    let lacks = |symbol| json!({"symbol": symbol, "needs_version": "2.27"});
    let expected = json!({
        "version": "2.18.5", "version_code": 21805, "path": file,
        "missing": [lacks("ncclCommWindowRegister"), lacks("ncclCommWindowDeregister")],
    });
    assert_eq!(line["nccl"], expected);
    let old = "old: it lacks ncclCommWindowRegister (2.27), ncclCommWindowDeregister (2.27)";
    assert_eq!(problems(&line, "nccl"), [old]);
    let whole = text(&built::library(&directory.path().join("whole.so"), 22703, &[]));
    assert_eq!(problems(&examined(&environment(&whole)).await, "nccl"), [""; 0]);
}

#[tokio::test]
async fn a_machine_that_cant_run_the_default_job_is_a_failure() {
    // Enough to look around, and too little for a demo.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 14; exec \"$0\" doctor --json", env!("CARGO_BIN_EXE_kvpipe")]);
    command.envs(environment("/nowhere/nccl.so"));
    let ended = command.output().await.unwrap();
    let line: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((ended.status.code(), &line["default_job"]["ok"]), (Some(1), &json!(false)), "{line}");
    let [problem] = &problems(&line, "default_job")[..] else { panic!("{line}") };
    assert!(problem.starts_with("failed: start") && problem.contains("Too many open files"), "{problem}");
    assert_eq!(line["limits"]["file_descriptors"], json!({"soft": 14, "hard": 14}));
    assert_eq!(problems(&line, "file_descriptors"), ["low: 1024 are usual"]);
}

#[tokio::test]
async fn interfaces_have_addresses_and_nccls_variable_chooses_among_them() {
    let taken = |line: &Value| {
        let all = line["interfaces"].as_array().unwrap().iter().filter(|one| one["nccl"] == true);
        all.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut environment = environment("/nowhere/nccl.so");
    let line = examined(&environment).await;
    let loopback = json!({"name": "lo", "address": "127.0.0.1", "running": true});
    let all = line["interfaces"].as_array().unwrap();
    let is_loopback =
        |one: &&Value| loopback.as_object().unwrap().iter().all(|(name, value)| one[name] == *value);
    assert_eq!(all.iter().filter(is_loopback).count(), 1, "{line}");
    // Of a machine that has no other one, not even NCCL takes another one.
    let others = all.iter().any(|one| one["name"] != "lo" && one["running"] == true);
    assert_eq!(taken(&line) == ["lo"], !others, "{line}");
    environment.push(("NCCL_SOCKET_IFNAME", "=lo"));
    assert_eq!(taken(&examined(&environment).await), ["lo"]);
}

#[tokio::test]
async fn people_get_lines_that_fit_a_screen() {
    let directory = directory();
    let file = built::library(&directory.path().join("n.so"), 22703, &built::SYMBOLS[21..]);
    for nccl in [text(&file), "/nowhere/nccl.so".into()] {
        let finished = doctor("", &environment(&nccl)).await.exited(0);
        for line in &finished.stdout {
            assert!(line.chars().count() <= 80 || line.contains('/'), "{line:?} of {finished:#?}");
        }
        let text = finished.stdout.join("\n");
        for part in
            ["default job    ok ", "\nNCCL ", "\nCUDA ", "\ninterfaces ", "127.0.0.1", "\nopen files "]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(text.ends_with("\nthe default job runs on this machine"), "{text}");
        // Whatever is wrong comes with its price and its cure.
        let count =
            |start: &str| finished.stdout.iter().filter(|line| line.trim().starts_with(start)).count();
        assert!(count("costs    ") > 0 && count("costs    ") == count("to do    "), "{text}");
    }
}

/// What the doctor finds with the fake driver and these switches of it.
async fn with_driver(switches: &str) -> Value {
    let folder = kvpipe_fake_cuda::library_folder().unwrap();
    let mut environment = environment("/nowhere/nccl.so");
    environment.extend([("LD_LIBRARY_PATH", folder.to_str().unwrap()), ("KVPIPE_FAKE_CUDA", switches)]);
    examined(&environment).await
}

#[tokio::test]
async fn devices_are_shown_with_their_memory() {
    let line = with_driver("devices=2,version=12040,oom=1000000").await;
    assert_eq!(line["cuda"]["version"], "12.4");
    let devices = line["cuda"]["devices"].as_array().unwrap();
    let named: Vec<_> = devices.iter().map(|gpu| gpu["device"].as_str().unwrap()).collect();
    assert_eq!(named, ["cuda:0", "cuda:1"]);
    for gpu in devices {
        assert_eq!(
            (&gpu["total_bytes"], &gpu["free_bytes"]),
            (&json!(1_000_000), &json!(1_000_000)),
            "{gpu}"
        );
        assert!(
            gpu["name"].is_string() && gpu["compute_capability"].as_str().unwrap().contains('.'),
            "{gpu}"
        );
    }
    assert_eq!(problems(&line, "cuda"), [""; 0]);
}

#[tokio::test]
async fn a_device_that_cant_be_opened_is_shown_with_why() {
    let line = with_driver("fail=cuDevicePrimaryCtxRetain:1:2").await;
    let gpu = &line["cuda"]["devices"][0];
    assert_eq!((&gpu["device"], &gpu["free_bytes"]), (&json!("cuda:0"), &Value::Null));
    let [problem] = &problems(&line, "cuda")[..] else { panic!("{line}") };
    assert!(problem.starts_with("failed: cuda:0: cuDevicePrimaryCtxRetain: "), "{problem}");
}

#[tokio::test]
async fn no_device_no_driver_and_an_old_one_are_told_apart() {
    let line = with_driver("devices=0").await;
    assert_eq!(line["cuda"]["devices"], json!([]));
    assert_eq!(problems(&line, "cuda"), ["missing: the driver sees no device"]);
    let line = with_driver("version=11030").await;
    assert_eq!(line["cuda"], Value::Null);
    let [problem] = &problems(&line, "cuda")[..] else { panic!("{line}") };
    assert!(problem.starts_with("missing: driver too old: "), "{problem}");
    let nothing = directory();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(nothing.path().join(name), "no library").unwrap();
    }
    let mut environment = environment("/nowhere/nccl.so");
    let folder = text(nothing.path());
    environment.push(("LD_LIBRARY_PATH", &folder));
    let line = examined(&environment).await;
    let [problem] = &problems(&line, "cuda")[..] else { panic!("{line}") };
    assert!(problem.starts_with("missing: no driver: "), "{problem}");
}

#[tokio::test]
async fn the_json_is_documented_to_the_field() {
    let finished = doctor("--help", &[]).await.exited(0);
    let help = finished.stdout.join("\n");
    let line = with_driver("devices=1").await;
    let Value::Object(fields) = &line else { panic!("{line}") };
    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
    for part in [
        &line["default_job"],
        &line["cuda"]["devices"][0],
        &line["limits"],
        &line["interfaces"][0],
        &line["problems"][0],
        &line["memory"],
    ] {
        names.extend(part.as_object().unwrap().keys().map(String::as_str));
    }
    let words: Vec<&str> = help.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for name in names {
        assert!(words.contains(&name), "{name} is not in {help}");
    }
}

#[tokio::test]
async fn a_library_that_finds_no_interface_is_told() {
    let Some(real) = std::env::var_os("KVPIPE_REAL_NCCL_SO") else {
        println!("skipped: KVPIPE_REAL_NCCL_SO names no libnccl.so.2");
        return;
    };
    let mut environment = environment(Path::new(&real).to_str().unwrap());
    environment.push(("NCCL_SOCKET_IFNAME", "=none"));
    let line = examined(&environment).await;
    let [problem] = &problems(&line, "nccl")[..] else { panic!("{line}") };
    assert!(problem.starts_with("failed: ncclGetUniqueId: "), "{problem}");
    assert!(problem.contains("no socket interface found"), "{problem}");
}
