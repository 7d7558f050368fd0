//! `--kv-transfer-config`: vLLM's JSON in place of options.

use serde_json::{Value, json};

use crate::support::{Process, run};

/// What a rank of a pair takes.
fn pair(rank: usize, port: u16) -> String {
    format!(r#"{{"kv_rank":{rank},"kv_parallel_size":2,"kv_port":{port},"kv_buffer_device":"cpu"}}"#)
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn the_json_is_enough_for_both_ends() {
    let mut sender = Process::start(&format!("send --kv-transfer-config {} none", pair(0, 0)));
    let store = sender.store_address().await;
    assert!(store.starts_with("127.0.0.1:"), "{store}");
    let receiver = run(&format!("recv --json --kv-transfer-config {}", pair(1, port_of(&store)))).await;
    assert_eq!(receiver.exited(0).json()[0], json!({"index": 0, "none": true}));
    sender.finish().await.exited(0);
}

#[tokio::test]
async fn the_json_means_what_the_options_mean() {
    let mut sender = Process::start("send --store 127.0.0.1:0 --rank 0 --world-size 2 none");
    let port = port_of(&sender.store_address().await);
    let receiver = run(&format!("recv --kv-transfer-config {}", pair(1, port))).await;
    receiver.exited(0);
    sender.finish().await.exited(0);
}

#[tokio::test]
async fn an_offset_is_added_to_the_port() {
    let mut sender = Process::start("send --store 127.0.0.1:0 --rank 0 --world-size 2 none");
    let port = port_of(&sender.store_address().await);
    let config = pair(1, port - 3);
    run(&format!("recv --kv-transfer-config {config} --port-offset 3")).await.exited(0);
    sender.finish().await.exited(0);
}

#[tokio::test]
async fn an_option_that_is_given_wins() {
    // A JSON that is wrong in all that options say.
    let json = r#"{"kv_rank":5,"kv_parallel_size":6,"kv_ip":"192.0.2.1","kv_buffer_device":"cpu","kv_buffer_size":1,"kv_connector_extra_config":{"store_timeout":0.001}}"#;
    let options = "--world-size 2 --timeout 100 --buffer-size 1MB";
    let mut sender = Process::start(&format!(
        "send --kv-transfer-config {json} --store 127.0.0.1:0 --rank 0 {options} none"
    ));
    let store = sender.store_address().await;
    let line = format!("recv --kv-transfer-config {json} --store {store} --rank 1 {options}");
    run(&line).await.exited(0);
    sender.finish().await.exited(0);
}

#[tokio::test]
async fn the_store_timeout_is_how_long_a_peer_is_waited_for() {
    let json = r#"{"kv_rank":0,"kv_parallel_size":2,"kv_port":0,"kv_buffer_device":"cpu","kv_connector_extra_config":{"store_timeout":1}}"#;
    run(&format!("send --kv-transfer-config {json} none"))
        .await
        .exited(1)
        .says(&["timed out after 1 s waiting for rank 1"]);
}

#[tokio::test]
async fn a_bad_json_is_a_usage_error_that_names_the_field() {
    let cpu = r#""kv_buffer_device":"cpu""#;
    for (json, says) in [
        ("{", "not JSON"),
        (r#"{"kv_port":99999}"#, "kv_port 99999 is not a port"),
        (r#"{"kv_buffer_device":"gpu"}"#, "kv_buffer_device \"gpu\" is not one of"),
        (r#"{"kv_rank":2,"kv_parallel_size":2}"#, "kv_rank 2 is beyond kv_parallel_size 2"),
        (&format!("{{{cpu}}}"), "kv_rank is missing"),
        (&format!(r#"{{"kv_rank":0,{cpu}}}"#), "world size of 1"),
        (&format!(r#"{{"kv_rank":1,"kv_parallel_size":2,"kv_port":0,{cpu}}}"#), "127.0.0.1:0"),
        (&format!(r#"{{"kv_rank":0,"kv_parallel_size":2,"kv_ip":"0.0.0.0",{cpu}}}"#), "--allow-remote"),
        (
            &format!(r#"{{"kv_rank":0,"kv_parallel_size":2,"kv_port":65535,{cpu}}} --port-offset 1"#),
            "above 65535",
        ),
        (
            &format!(r#"{{"kv_rank":0,"kv_parallel_size":2,{cpu}}} --rank 2"#),
            "rank 2 is beyond the world size 2",
        ),
        (&format!("{{{cpu}}} --store 127.0.0.1:1 --port-offset 1"), "--port-offset"),
    ] {
        run(&format!("recv --kv-transfer-config {json}")).await.exited(2).says(&[says]);
    }
    run("recv --store 127.0.0.1:1 --rank 0 --world-size 2 --port-offset 1").await.exited(2);
}

async fn demo(options: &str) -> Value {
    let finished = run(&format!("demo --model tiny --json {options}")).await.exited(0);
    finished.json()[0].clone()
}

#[tokio::test]
async fn a_demo_takes_ranks_and_store_from_the_json_and_options_win() {
    let json = r#"{"kv_rank":2,"kv_parallel_size":3,"kv_port":0,"kv_buffer_device":"cpu"}"#;
    for transport in ["tcp", "memory"] {
        assert_eq!(demo(&format!("--transport {transport} --kv-transfer-config {json}")).await["ranks"], 3);
    }
    assert_eq!(demo(&format!("--kv-transfer-config {json} --ranks 1")).await["ranks"], 1);
}

#[tokio::test]
async fn a_demo_serves_its_store_where_the_json_says() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    run(&format!("demo --model tiny --kv-transfer-config {} --port-offset 1", pair(0, port - 1)))
        .await
        .exited(1)
        .says(&[&format!("127.0.0.1:{port}"), "in use"]);
}

#[tokio::test]
async fn a_demo_refuses_what_send_and_recv_refuse() {
    let cpu = r#""kv_buffer_device":"cpu""#;
    for (json, says) in [
        (&format!(r#"{{"kv_ip":"0.0.0.0",{cpu}}}"#), "--allow-remote"),
        (&format!(r#"{{"kv_parallel_size":65,{cpu}}}"#), "kv_parallel_size 65"),
    ] {
        let finished = run(&format!("demo --model tiny --kv-transfer-config {json}")).await.exited(2);
        assert_eq!(finished.says(&[says]).stdout, [""; 0]);
    }
    run(&format!(
        r#"demo --model tiny --kv-transfer-config {{"kv_ip":"0.0.0.0","kv_port":0,{cpu}}} --allow-remote"#
    ))
    .await
    .exited(0);
}
