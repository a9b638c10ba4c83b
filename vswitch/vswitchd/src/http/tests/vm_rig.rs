//! VMs made, started and waited for through the API.

use std::time::Duration;

use serde_json::Value;

use super::lab;
use super::rig::Rig;

pub(super) const VMS: &str = "/v1/vms";

/// A rig with networks `lab` and `other`, and a file to boot.
pub(super) async fn rig() -> (Rig, String) {
    let rig = lab().await;
    rig.ok(
        "POST",
        "/v1/networks",
        r#"{"name":"other","type":"private"}"#,
    )
    .await;
    let kernel = rig.path("kernel");
    std::fs::write(&kernel, "kernel").unwrap();
    (rig, format!("kernel:{}", kernel.display()))
}

pub(super) async fn act(rig: &Rig, vm: &str, verb: &str) -> Value {
    let body = format!(r#"{{"verb":"{verb}"}}"#);
    rig.ok("POST", &format!("{VMS}/{vm}/action"), &body).await
}

pub(super) async fn create(rig: &Rig, boot: &str, vm: &str, more: &str) -> Value {
    let body = format!(r#"{{"name":"{vm}","boot":"{boot}"{more}}}"#);
    rig.ok("POST", VMS, &body).await
}

/// Waits until a VM has come so far.
pub(super) async fn until(rig: &Rig, vm: &str, state: &str) -> Value {
    for _ in 0..400 {
        let view = rig.ok("GET", &format!("{VMS}/{vm}"), "").await;
        if view["state"] == state {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("VM {vm} did not come to be {state}");
}
