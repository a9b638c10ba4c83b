//! The configuration as a document.

use serde_json::{Value, json};
use vswitch::api::ConfigDocument;

use super::rig::Rig;
use super::vm_rig::{create, rig};
use super::{EXTERNAL, FDB, INTERNAL, NETWORKS};

const CONFIG: &str = "/v1/config";
const CHECK: &str = "/v1/config/check";

/// A rig with something of everything; networks `lab`, `lan` and `int`.
async fn all() -> Rig {
    let (rig, boot) = rig().await;
    rig.ok("POST", NETWORKS, EXTERNAL).await;
    rig.ok("POST", NETWORKS, INTERNAL).await;
    let no_host = r#"{"name":"nohost","type":"external","uplink":"eth1","no_host_nic":true}"#;
    rig.ok("POST", NETWORKS, no_host).await;
    let ports = "/v1/networks/lab/ports";
    for port in [
        r#"{"name":"t","tap":"tap-t","vlan":"trunk:10,20,native=5","mtu":9000,"mac_quota":7}"#,
        r#"{"name":"u","vhost_user":"/run/b.sock","mode":"client","queues":4,"link":"down"}"#,
        r#"{"name":"c","tap":"tap-c","mac_guard":"02:00:00:00:00:07"}"#,
    ] {
        rig.ok("POST", ports, port).await;
    }
    rig.ok("PATCH", "/v1/networks/lab/ports/c", r#"{"network":null}"#)
        .await;
    let host = "/v1/networks/int/ports/host";
    rig.ok(
        "PATCH",
        host,
        r#"{"mac_guard":"02:00:00:00:00:08","mac_quota":5}"#,
    )
    .await;
    rig.ok("PATCH", "/v1/networks/int", r#"{"ageing":60}"#)
        .await;
    rig.ok(
        "POST",
        FDB,
        r#"{"mac":"02:00:00:00:00:01","port":"t","vlan":10}"#,
    )
    .await;
    let more = r#","memory":"64M","cpus":2,"auto_start":"always,delay=7","services":["heartbeat"],
        "legacy":[{"network":"lab","vlan":7},{"mac":"52:00:00:00:00:99"}],"synthetic":[{"network":"int"}]"#;
    create(&rig, &boot, "web", more).await;
    rig.ok(
        "PATCH",
        "/v1/networks/int/ports/web.synthetic0",
        r#"{"vlan":"trunk:1-4094"}"#,
    )
    .await;
    rig
}

/// Asks a rig for every part of a document, as a person would who reads it.
async fn follow(rig: &Rig, document: &Value) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    for network in list(&document["network"]) {
        rig.ok("POST", NETWORKS, &network.to_string()).await;
    }
    for (network, ports) in map(&document["port"]) {
        for port in list(&ports) {
            let path = format!("{NETWORKS}/{network}/ports");
            rig.ok("POST", &path, &port.to_string()).await;
        }
    }
    for vm in list(&document["vm"]) {
        rig.ok("POST", "/v1/vms", &vm.to_string()).await;
    }
    for (network, ports) in map(&document["settings"]) {
        for (port, mut patch) in map(&ports) {
            let settings = patch.as_object_mut().unwrap();
            if settings.remove("connected") == Some(json!(false)) {
                settings.insert("network".into(), Value::Null);
            }
            let path = format!("{NETWORKS}/{network}/ports/{port}");
            rig.ok("PATCH", &path, &patch.to_string()).await;
        }
    }
    for (network, entries) in map(&document["fdb"]) {
        for entry in list(&entries) {
            let path = format!("{NETWORKS}/{network}/fdb");
            rig.ok("POST", &path, &entry.to_string()).await;
        }
    }
}

#[tokio::test]
async fn what_is_exported_is_allowed_and_makes_the_same_again() {
    let old = all().await;
    let document = old.ok("GET", CONFIG, "").await;
    assert_eq!(document["version"], json!(1));
    assert_eq!(
        document["network"][0],
        json!({"name":"int","type":"internal","host_nic":"vsw-int","vlan":10,"mtu":9000,"ageing":60})
    );
    assert_eq!(
        document["settings"],
        json!({
            "int": {"host": {"mac_guard":"02:00:00:00:00:08","mac_quota":5}, "web.synthetic0": {"vlan":"trunk:all"}},
            "lab": {"c": {"connected":false}}
        })
    );
    old.ok("POST", CHECK, &document.to_string()).await;
    let new = Rig::new();
    follow(&new, &document).await;
    assert_eq!(new.ok("GET", CONFIG, "").await, document);
    // The same as TOML.
    let read: ConfigDocument = serde_json::from_value(document.clone()).unwrap();
    let text = toml::to_string_pretty(&read).unwrap();
    let again: ConfigDocument = toml::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), document, "{text}");
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let rig = Rig::new();
    let before = rig.ok("GET", CONFIG, "").await;
    assert_eq!(before, json!({"version":1}));
    for (document, why) in [
        (r#"{"version":2}"#, "version '2'"),
        (r#"{"version":1,"networks":[]}"#, "networks"),
        (
            r#"{"version":1,"network":[{"name":"a","type":"private"},{"name":"a","type":"private"}]}"#,
            "network 'a' is there twice",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"private","vlan":10}]}"#,
            "VLAN 10 refused",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"internal","host_nic":"n0"},{"name":"b","type":"internal","host_nic":"n0"}]}"#,
            "'n0' is there twice",
        ),
        (
            r#"{"version":1,"port":{"x":[{"name":"p","tap":"t0"}]}}"#,
            "no network 'x'",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"private"}],"port":{"a":[{"name":"p","tap":"t0"},{"name":"p","tap":"t1"}]}}"#,
            "port of network 'a' 'p' is there twice",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"private"}],"port":{"a":[{"name":"p"}]}}"#,
            "give one of vhost_user",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"private"}],"settings":{"a":{"q":{"link":"down"}}}}"#,
            "no port 'q' in network 'a'",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"internal"}],"settings":{"a":{"host":{"connected":false}}}}"#,
            "neither moved nor disconnected",
        ),
        (
            r#"{"version":1,"network":[{"name":"a","type":"internal"}],"fdb":{"a":[{"mac":"02:00:00:00:00:01","port":"host","vlan":9}]}}"#,
            "carries no frames of VLAN 9",
        ),
        (
            r#"{"version":1,"vm":[{"name":"v","cpus":65}]}"#,
            "allowed: 1 to 4",
        ),
        (
            r#"{"version":1,"vm":[{"name":"v"},{"name":"v"}]}"#,
            "VM 'v' is there twice",
        ),
        (
            r#"{"version":1,"vm":[{"name":"v","legacy":[{"network":"x"}]}]}"#,
            "no network 'x'",
        ),
    ] {
        rig.refused(("POST", CHECK, document), 400, why).await;
    }
    assert_eq!(rig.ok("GET", CONFIG, "").await, before);
}
