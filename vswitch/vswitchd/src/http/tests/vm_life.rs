//! VMs and the end of vswitchd: killed and adopted, ended in order, and what starts again.

use std::time::Duration;

use serde_json::json;

use super::rig::Rig;
use super::vm_rig::{VMS, act, create, rig, until};

#[tokio::test]
async fn after_sigkill_a_running_vm_is_adopted() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"}]"#).await;
    create(&rig, &boot, "gone", r#","auto_start":"nothing""#).await;
    let pid = act(&rig, "web", "start").await["pid"].clone();
    act(&rig, "web", "pause").await;
    let gone = act(&rig, "gone", "start").await["pid"].as_i64().unwrap() as i32;
    let rig = rig
        .restart(false, |_| {
            let raw = rustix::process::Pid::from_raw(gone).unwrap();
            rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
            std::thread::sleep(Duration::from_millis(200));
        })
        .await;
    let view = until(&rig, "web", "paused").await;
    assert_eq!(view["pid"], pid);
    let view = until(&rig, "gone", "off").await;
    assert_eq!(
        view["detail"],
        "its process ended while vswitchd did not run"
    );
    act(&rig, "web", "resume").await;
    let port = rig
        .ok("GET", "/v1/networks/lab/ports/web.legacy0", "")
        .await;
    assert_eq!(port["state"], "up");
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn after_sigkill_a_vm_that_the_store_does_not_know_is_sent_away() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", "").await;
    let pid = act(&rig, "web", "start").await["pid"].as_i64().unwrap();
    // As if vswitchd had been killed before it could note the process.
    rig.sql("UPDATE vm SET state = 'off', pid = NULL, started = NULL");
    let rig = rig.restart(false, |_| {}).await;
    let stat = format!("/proc/{pid}/stat");
    // It is a zombie at last, as its parent, this process, does not wait for it.
    let gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..200 {
        if gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(gone(), "process {pid} goes on");
    act(&rig, "web", "start").await;
    act(&rig, "web", "turn-off").await;
}

#[tokio::test]
async fn what_ran_runs_again_after_an_orderly_end() {
    let (rig, boot) = rig().await;
    for (vm, more) in [
        ("saved", ""),
        ("off", r#","auto_stop":"turn-off""#),
        ("not", r#","auto_start":"nothing","auto_stop":"turn-off""#),
        ("late", r#","auto_start":"if-running,delay=3600""#),
    ] {
        create(&rig, &boot, vm, more).await;
        act(&rig, vm, "start").await;
    }
    create(&rig, &boot, "always", r#","auto_start":"always""#).await;
    create(&rig, &boot, "never-ran", "").await;
    let rig = rig.restart(true, |_| {}).await;
    rig.shared
        .blocking(|manager| {
            crate::vm::verbs::start_due(manager);
            Ok(())
        })
        .await
        .unwrap();
    for (vm, state) in [
        ("saved", "running"),
        ("off", "running"),
        ("not", "off"),
        ("late", "saved"),
        ("always", "running"),
        ("never-ran", "off"),
    ] {
        let view = rig.ok("GET", &format!("{VMS}/{vm}"), "").await;
        assert_eq!(view["state"], state, "{vm}: {view}");
    }
    for vm in ["saved", "off", "always"] {
        act(&rig, vm, "turn-off").await;
    }
}

async fn start_due(rig: &Rig) {
    let due = rig.shared.blocking(|manager| {
        crate::vm::verbs::start_due(manager);
        Ok(())
    });
    due.await.unwrap();
}

#[tokio::test]
async fn an_automatic_start_waits_its_delay() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "soon", r#","auto_start":"always,delay=2""#).await;
    let rig = rig.restart(true, |_| {}).await;
    start_due(&rig).await;
    until(&rig, "soon", "off").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    start_due(&rig).await;
    until(&rig, "soon", "running").await;
    act(&rig, "soon", "turn-off").await;
    // It was due once.
    start_due(&rig).await;
    until(&rig, "soon", "off").await;
}

#[tokio::test]
async fn an_automatic_stop_shuts_down_or_else_turns_off_or_saves_what_is_paused() {
    let (rig, boot) = rig().await;
    for (vm, action) in [
        ("obeys", "shutdown"),
        ("deaf", "shutdown"),
        ("idle", "shutdown,timeout=2"),
        ("stands", "shutdown"),
    ] {
        let more = format!(r#","cmdline":"{vm}","auto_stop":"{action}""#);
        create(&rig, &boot, vm, &more).await;
        act(&rig, vm, "start").await;
    }
    act(&rig, "stands", "pause").await;
    let view = rig.ok("GET", &format!("{VMS}/idle"), "").await;
    assert_eq!(view["auto_stop"], "shutdown,timeout=2");
    let begin = std::time::Instant::now();
    let stopped = rig.shared.blocking(|manager| {
        crate::vm::verbs::stop_all(manager);
        Ok(())
    });
    stopped.await.unwrap();
    // What takes no notice of its button had its two seconds, and not the minute that others have.
    let took = begin.elapsed();
    assert!((2..30).contains(&took.as_secs()), "{took:?}");
    for (vm, state, detail) in [
        ("obeys", "off", "the guest switched itself off"),
        ("deaf", "off", "it was turned off, as vswitchd ended"),
        ("idle", "off", "it was turned off, as vswitchd ended"),
        ("stands", "saved", "its state was saved"),
    ] {
        let view = rig.ok("GET", &format!("{VMS}/{vm}"), "").await;
        let found = (&view["state"], &view["detail"]);
        assert_eq!(found, (&json!(state), &json!(detail)), "{vm}");
    }
}

#[tokio::test]
async fn a_vm_that_cannot_be_saved_goes_on_and_leaves_nothing_half_written() {
    let (rig, boot) = rig().await;
    create(
        &rig,
        &boot,
        "full",
        r#","cmdline":"full","legacy":[{"network":"lab"}]"#,
    )
    .await;
    create(&rig, &boot, "vanish", r#","cmdline":"vanish""#).await;
    let save = async |vm: &str, why: &str| {
        let path = format!("{VMS}/{vm}/action");
        rig.refused(("POST", &path, r#"{"verb":"save"}"#), 500, why)
            .await;
        for file in ["saved", "saving"] {
            assert!(!rig.path(&format!("vm/{vm}.{file}")).exists(), "{file}");
        }
    };
    let pid = act(&rig, "full", "start").await["pid"].clone();
    save("full", "no space left on device").await;
    let view = until(&rig, "full", "running").await;
    assert_eq!(view["pid"], pid);
    let port = rig
        .ok("GET", "/v1/networks/lab/ports/full.legacy0", "")
        .await;
    assert_eq!(port["state"], "up");
    // One that was paused stays so.
    act(&rig, "full", "pause").await;
    save("full", "no space left on device").await;
    until(&rig, "full", "paused").await;
    act(&rig, "full", "turn-off").await;
    act(&rig, "vanish", "start").await;
    save("vanish", "its process ended with status 3").await;
    until(&rig, "vanish", "off").await;
}
