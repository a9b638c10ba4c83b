//! Synthetic adapters through the API.

use std::time::Duration;

use serde_json::{Value, json};

use super::rig::Rig;
use super::vm_rig::{VMS, act, create, rig, until};

async fn port(rig: &Rig, name: &str) -> Value {
    let path = format!("/v1/networks/lab/ports/{name}");
    rig.ok("GET", &path, "").await
}

/// Waits until a port is in a state.
async fn until_port(rig: &Rig, name: &str, state: &str) -> Value {
    for _ in 0..400 {
        let port = port(rig, name).await;
        if port["state"] == state {
            return port;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("port {name} is {}", port(rig, name).await);
}

fn names(view: &Value) -> Vec<&str> {
    let adapters = view["adapters"].as_array().unwrap().iter();
    adapters.map(|a| a["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn settings_and_ports() {
    let (rig, boot) = rig().await;
    let more = r#","legacy":[{}],"synthetic":[{"network":"lab","vlan":7},{"name":"synthetic5"}],"services":["heartbeat"]"#;
    let view = create(&rig, &boot, "web", more).await;
    assert_eq!(names(&view), ["legacy0", "synthetic0", "synthetic5"]);
    assert_eq!(
        view["adapters"][1],
        json!({"name":"synthetic0","kind":"synthetic","mac":"52:00:00:00:00:01","static_mac":false,
               "network":"lab","vlan":7,"link":"up","driver":"none"})
    );
    assert_eq!(
        (&view["hyperv"], &view["services"], &view["crash"]),
        (
            &json!(true),
            &json!([{"name":"heartbeat","driver":"none"}]),
            &json!(null)
        )
    );
    let waiting = port(&rig, "web.synthetic0").await;
    assert_eq!(
        (&waiting["kind"], &waiting["adapter"], &waiting["vlan"]),
        (
            &json!("synthetic"),
            &json!("synthetic0"),
            &json!("access:7")
        )
    );
    // A synthetic adapter has the MTU of its network, or one of its own.
    rig.ok(
        "PATCH",
        "/v1/networks/lab/ports/web.synthetic0",
        r#"{"mtu":9000}"#,
    )
    .await;
    let of_web = format!("{VMS}/web");
    rig.refused(
        ("PATCH", &of_web, r#"{"hyperv":false}"#),
        409,
        "VM 'web' cannot have adapter 'synthetic0'",
    )
    .await;
    let before = rig.ok("GET", VMS, "").await;
    let rig = rig.restart(false, |_| {}).await;
    assert_eq!(rig.ok("GET", VMS, "").await, before);
    for adapter in ["synthetic0", "synthetic5"] {
        rig.ok("DELETE", &format!("{VMS}/web/adapters/{adapter}"), "")
            .await;
    }
    let view = rig.ok("PATCH", &of_web, r#"{"hyperv":false}"#).await;
    assert_eq!(
        (&view["hyperv"], &view["services"]),
        (&json!(false), &json!([]))
    );
    rig.refused(
        (
            "POST",
            &format!("{VMS}/web/adapters"),
            r#"{"kind":"synthetic"}"#,
        ),
        409,
        "its guest does not find Hyper-V",
    )
    .await;
}

#[tokio::test]
async fn opened_by_the_guest_and_kept_over_sigkill() {
    let (rig, boot) = rig().await;
    let more = r#","synthetic":[{"network":"lab"},{}]"#;
    create(&rig, &boot, "web", more).await;
    let waiting = port(&rig, "web.synthetic0").await;
    assert_eq!(waiting["detail"], "the VM does not run");
    act(&rig, "web", "start").await;
    until_port(&rig, "web.synthetic0", "up").await;
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    assert_eq!(
        (&view["exits"]["met"], &view["exits"]["unmet"]),
        (&json!(4), &json!(0))
    );
    assert_eq!(view["adapters"][0]["driver"], "bound");
    assert_eq!(view["facts"], json!({"OSName":"Fake"}));
    assert_eq!(
        view["services"],
        json!([{"name":"shutdown","driver":"bound"},{"name":"heartbeat","driver":"none"},
               {"name":"time-sync","driver":"none"},{"name":"key-value","driver":"none"}])
    );
    act(&rig, "web", "pause").await;
    let paused = port(&rig, "web.synthetic0").await;
    assert_eq!(
        (&paused["state"], &paused["detail"]),
        (&json!("waiting"), &json!("the VM is paused"))
    );
    act(&rig, "web", "resume").await;
    until_port(&rig, "web.synthetic0", "up").await;
    let rig = rig.restart(false, |_| {}).await;
    until(&rig, "web", "running").await;
    until_port(&rig, "web.synthetic0", "up").await;
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    assert_eq!(
        (&view["exits"]["met"], &view["exits"]["unmet"]),
        (&json!(10), &json!(0))
    );
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn demands_that_cannot_be_met_harm_nobody() {
    let (rig, boot) = rig().await;
    create(
        &rig,
        &boot,
        "web",
        r#","cmdline":"wild","synthetic":[{"network":"lab"}]"#,
    )
    .await;
    act(&rig, "web", "start").await;
    until_port(&rig, "web.synthetic0", "up").await;
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    // Seven of the nine; then the driver opens its adapter after all.
    assert_eq!(
        (&view["exits"]["unmet"], &view["exits"]["met"]),
        (&json!(7), &json!(4))
    );
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn plugged_in_and_unplugged_while_it_runs() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", "").await;
    let adapters = format!("{VMS}/web/adapters");
    act(&rig, "web", "start").await;
    let view = rig
        .ok("POST", &adapters, r#"{"kind":"synthetic","network":"lab"}"#)
        .await;
    assert_eq!(names(&view), ["synthetic0"]);
    until_port(&rig, "web.synthetic0", "up").await;
    rig.refused(
        ("POST", &adapters, r#"{"network":"lab"}"#),
        409,
        "cannot add a legacy adapter while it is running; allowed while it is off",
    )
    .await;
    // It is adopted with what it has now, and not with what it started with.
    let rig = rig.restart(false, |_| {}).await;
    until(&rig, "web", "running").await;
    until_port(&rig, "web.synthetic0", "up").await;
    rig.ok("DELETE", &format!("{adapters}/synthetic0"), "")
        .await;
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    assert_eq!(names(&view), Vec::<&str>::new());
    assert_eq!(view["exits"]["unmet"], 0);
    rig.refused(
        ("GET", "/v1/networks/lab/ports/web.synthetic0", ""),
        404,
        "no port",
    )
    .await;
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn what_is_not_plugged_in_is_not_there() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","cmdline":"fixed""#).await;
    act(&rig, "web", "start").await;
    let rows = rig.rows();
    rig.refused(
        (
            "POST",
            &format!("{VMS}/web/adapters"),
            r#"{"kind":"synthetic","network":"lab"}"#,
        ),
        500,
        "cannot plug in adapter 'synthetic0' of VM 'web': the adapters are fixed",
    )
    .await;
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    assert_eq!((names(&view).len(), rig.rows()), (0, rows));
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn crashes_are_shown_until_the_next_start() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", "").await;
    act(&rig, "web", "start").await;
    let view = act(&rig, "web", "reset").await;
    let crash = json!({"parameters":[0xd1,1,2,3,4],"message":"as the reset button says"});
    assert_eq!(view["crash"], crash);
    let view = act(&rig, "web", "turn-off").await;
    assert_eq!(view["crash"], crash);
    let view = act(&rig, "web", "start").await;
    assert_eq!(view["crash"], json!(null));
    act(&rig, "web", "turn-off").await;
}
