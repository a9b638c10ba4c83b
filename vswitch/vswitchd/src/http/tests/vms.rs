//! VMs through the API, with processes that only speak the protocol.

use std::time::Duration;

use serde_json::json;

use super::rig::Rig;
use super::vm_refused::REFUSED;
use super::vm_rig::{VMS, act, create, rig, until};

#[tokio::test]
async fn settings_and_adapters() {
    let (rig, boot) = rig().await;
    let more = r#","memory":"64M","cpus":4,"cmdline":"console=ttyS0","notes":"for tests",
        "auto_start":"always,delay=7","auto_stop":"turn-off",
        "legacy":[{"network":"lab","vlan":7},{"mac":"02:00:00:00:00:99"}]"#;
    let view = create(&rig, &boot, "web", more).await;
    assert_eq!(
        (
            &view["state"],
            &view["memory"],
            &view["auto_start"],
            &view["notes"]
        ),
        (
            &json!("off"),
            &json!("64M"),
            &json!("always,delay=7"),
            &json!("for tests")
        )
    );
    assert_eq!(
        view["adapters"],
        json!([
            {"name":"legacy0","kind":"legacy","mac":"52:00:00:00:00:00","static_mac":false,"network":"lab","vlan":7,
             "link":"up","driver":"none"},
            {"name":"legacy1","kind":"legacy","mac":"02:00:00:00:00:99","static_mac":true,"network":null,"vlan":null,
             "link":"down","driver":"none"}])
    );
    let port = rig
        .ok("GET", "/v1/networks/lab/ports/web.legacy0", "")
        .await;
    assert_eq!(
        (
            &port["kind"],
            &port["vm"],
            &port["adapter"],
            &port["vlan"],
            &port["state"]
        ),
        (
            &json!("legacy"),
            &json!("web"),
            &json!("legacy0"),
            &json!("access:7"),
            &json!("waiting")
        )
    );
    rewire(&rig).await;
    // All of it is there after a restart.
    let before = rig.ok("GET", VMS, "").await;
    let rig = rig.restart(false, |_| {}).await;
    assert_eq!(rig.ok("GET", VMS, "").await, before);
    rig.ok("DELETE", &format!("{VMS}/web"), "").await;
    rig.refused(
        ("GET", "/v1/networks/lab/ports/web.legacy1", ""),
        404,
        "no port",
    )
    .await;
    // Networks lab and other, and the two ports of the lab.
    assert_eq!(rig.rows(), 4);
}

/// Moves the adapters of VM `web`, makes and deletes some.
async fn rewire(rig: &Rig) {
    // Moved, with its VLAN; disconnected; and back.
    let adapter = format!("{VMS}/web/adapters/legacy0");
    rig.ok("PATCH", &adapter, r#"{"network":"other"}"#).await;
    let port = rig
        .ok("GET", "/v1/networks/other/ports/web.legacy0", "")
        .await;
    assert_eq!(port["vlan"], "access:7");
    let view = rig
        .ok("PATCH", &adapter, r#"{"network":null,"vlan":null}"#)
        .await;
    let first = &view["adapters"][0];
    assert_eq!(
        (&first["network"], &first["link"], &first["vlan"]),
        (&json!(null), &json!("down"), &json!(null))
    );
    rig.ok("PATCH", &adapter, r#"{"network":"lab"}"#).await;
    // The second one is connected for the first time, and takes the address of the first.
    let second = format!("{VMS}/web/adapters/legacy1");
    let view = rig
        .ok(
            "PATCH",
            &second,
            r#"{"network":"lab","mac":"52:00:00:00:00:00"}"#,
        )
        .await;
    let warning = view["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("52:00:00:00:00:00, which web.legacy1 in its network"),
        "{warning}"
    );
    // Its driver would swap the bytes of such an address.
    let odd = r#"{"mac":"02:00:00:00:00:07"}"#;
    let view = rig.ok("PATCH", &second, odd).await;
    let warning = view["warnings"][0].as_str().unwrap();
    assert!(warning.contains("bytes swapped in pairs"), "{warning}");
    let view = rig.ok("PATCH", &second, r#"{"mac":null}"#).await;
    assert_eq!(view["adapters"][1]["mac"], "52:00:00:00:00:01");
    assert_eq!(view["warnings"], json!([]));
    let view = rig.ok("POST", &format!("{VMS}/web/adapters"), "{}").await;
    assert_eq!(view["adapters"][2]["name"], "legacy2");
    rig.ok("DELETE", &adapter, "").await;
    let view = rig
        .ok("PATCH", &format!("{VMS}/web"), r#"{"notes":"","cpus":1}"#)
        .await;
    assert_eq!((&view["notes"], &view["cpus"]), (&json!(""), &json!(1)));
}

#[tokio::test]
async fn refusals_leave_nothing_behind() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"}]"#).await;
    let picture = async |rig: &Rig| {
        (
            rig.ok("GET", VMS, "").await,
            rig.ok("GET", "/v1/ports", "").await,
            rig.rows(),
        )
    };
    let before = picture(&rig).await;
    for &(method, path, body, status, why) in REFUSED {
        rig.refused((method, &format!("{VMS}{path}"), body), status, why)
            .await;
        assert_eq!(picture(&rig).await, before, "{method} {path} {body}");
    }
    for (call, status, why) in [
        (
            ("DELETE", "/v1/networks/lab/ports/web.legacy0", ""),
            409,
            "is adapter 'legacy0' of VM 'web'",
        ),
        (
            (
                "PATCH",
                "/v1/networks/lab/ports/web.legacy0",
                r#"{"mtu":9000}"#,
            ),
            400,
            "MTU 1500",
        ),
    ] {
        rig.refused(call, status, why).await;
        assert_eq!(picture(&rig).await, before);
    }
    rig.change_world(|world| world.no_kvm = Some("cannot open /dev/kvm".into()));
    rig.refused(
        ("POST", VMS, r#"{"name":"a"}"#),
        500,
        "cannot open /dev/kvm",
    )
    .await;
    assert_eq!(picture(&rig).await, before);
}

#[tokio::test]
async fn addresses_are_never_given_twice() {
    let (rig, boot) = rig().await;
    // The pool of these tests has eight; one of them is somebody's own.
    create(
        &rig,
        &boot,
        "own",
        r#","legacy":[{"mac":"52:00:00:00:00:02"}]"#,
    )
    .await;
    create(&rig, &boot, "a", r#","legacy":[{},{},{}]"#).await;
    rig.ok("DELETE", &format!("{VMS}/a"), "").await;
    let rig = rig.restart(true, |_| {}).await;
    let view = create(&rig, &boot, "b", r#","legacy":[{},{},{},{}]"#).await;
    let macs: Vec<_> = view["adapters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["mac"].clone())
        .collect();
    assert_eq!(
        macs,
        [
            "52:00:00:00:00:04",
            "52:00:00:00:00:05",
            "52:00:00:00:00:06",
            "52:00:00:00:00:07"
        ]
    );
    let rows = rig.rows();
    rig.refused(
        ("POST", VMS, r#"{"name":"c","legacy":[{}]}"#),
        409,
        "all addresses of the pool 52:00:00:00:00:00-52:00:00:00:00:07 have been given out",
    )
    .await;
    assert_eq!(rig.rows(), rows);
}

/// What is allowed in each state; everything else is refused by name.
const STATES: &[(&str, &[&str])] = &[
    ("off", &["start"]),
    (
        "running",
        &["turn-off", "shutdown", "pause", "reset", "save"],
    ),
    ("paused", &["turn-off", "resume", "reset", "save"]),
    ("saved", &["start", "discard"]),
];
const VERBS: [&str; 8] = [
    "start", "turn-off", "shutdown", "pause", "resume", "reset", "save", "discard",
];

async fn bring(rig: &Rig, state: &str) {
    let verbs: &[&str] = match state {
        "running" => &["start"],
        "paused" => &["start", "pause"],
        "saved" => &["start", "save"],
        _ => &[],
    };
    for verb in verbs {
        act(rig, "web", verb).await;
    }
}

#[tokio::test]
async fn states() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"}]"#).await;
    for (state, allowed) in STATES {
        bring(&rig, state).await;
        until(&rig, "web", state).await;
        for verb in VERBS.iter().filter(|verb| !allowed.contains(verb)) {
            let body = format!(r#"{{"verb":"{verb}"}}"#);
            let why = format!(
                "cannot {verb} VM 'web': it is {state}; allowed: {}",
                allowed.join(", ")
            );
            rig.refused(("POST", &format!("{VMS}/web/action"), &body), 409, &why)
                .await;
        }
        if *state != "off" {
            rig.refused(
                ("PATCH", &format!("{VMS}/web"), r#"{"cpus":2}"#),
                409,
                "allowed while it is off",
            )
            .await;
            rig.refused(
                ("POST", &format!("{VMS}/web/adapters"), "{}"),
                409,
                "allowed while it is off",
            )
            .await;
            rig.ok("PATCH", &format!("{VMS}/web"), r#"{"notes":"x"}"#)
                .await;
        }
        let end = if *state == "saved" {
            "discard"
        } else {
            "turn-off"
        };
        if *state != "off" {
            if *state != "saved" {
                rig.refused(
                    ("DELETE", &format!("{VMS}/web"), ""),
                    409,
                    "turn it off first",
                )
                .await;
            }
            act(&rig, "web", end).await;
        }
        let off = until(&rig, "web", "off").await;
        assert_eq!(off["pid"], json!(null));
    }
}

#[tokio::test]
async fn saved_and_started_again() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"}]"#).await;
    act(&rig, "web", "start").await;
    let view = act(&rig, "web", "save").await;
    assert_eq!(
        (&view["state"], &view["detail"]),
        (&json!("saved"), &json!("its state was saved"))
    );
    assert_eq!(
        std::fs::read(rig.path("vm/web.saved")).unwrap(),
        b"all of it"
    );
    let rig = rig.restart(true, |_| {}).await;
    assert_eq!(until(&rig, "web", "saved").await["state"], "saved");
    // A state that cannot be used stays.
    std::fs::write(rig.path("vm/web.saved"), "half of it").unwrap();
    rig.refused(
        ("POST", &format!("{VMS}/web/action"), r#"{"verb":"start"}"#),
        500,
        "cannot start VM 'web'",
    )
    .await;
    assert_eq!(until(&rig, "web", "saved").await["state"], "saved");
    std::fs::write(rig.path("vm/web.saved"), "all of it").unwrap();
    act(&rig, "web", "start").await;
    assert!(!rig.path("vm/web.saved").exists());
    act(&rig, "web", "turn-off").await;
    until(&rig, "web", "off").await;
}

#[tokio::test]
async fn a_process_that_dies_is_reported() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "dies", r#","cmdline":"die""#).await;
    rig.refused(
        ("POST", &format!("{VMS}/dies/action"), r#"{"verb":"start"}"#),
        500,
        "cannot start VM 'dies': its process ended with status 101",
    )
    .await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"}]"#).await;
    let pid = act(&rig, "web", "start").await["pid"].as_i64().unwrap() as i32;
    let port = rig
        .ok("GET", "/v1/networks/lab/ports/web.legacy0", "")
        .await;
    assert_eq!(port["state"], "up");
    let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
    assert_eq!(view["adapters"][0]["driver"], "bound");
    let raw = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let view = until(&rig, "web", "off").await;
    let detail = view["detail"].as_str().unwrap();
    assert!(detail.contains("was killed by signal"), "{detail}");
    let port = rig
        .ok("GET", "/v1/networks/lab/ports/web.legacy0", "")
        .await;
    assert_eq!(
        (&port["state"], &port["detail"]),
        (&json!("waiting"), &json!("the VM does not run"))
    );
    assert!(!rig.path("vm/web.com1.sock").exists());
}

#[tokio::test]
async fn links_reach_the_guest() {
    let (rig, boot) = rig().await;
    create(&rig, &boot, "web", r#","legacy":[{"network":"lab"},{}]"#).await;
    act(&rig, "web", "start").await;
    let links = async |rig: &Rig| {
        let view = rig.ok("GET", &format!("{VMS}/web"), "").await;
        (
            view["exits"]["link0"].clone(),
            view["exits"]["link1"].clone(),
        )
    };
    assert_eq!(links(&rig).await, (json!(1), json!(0)));
    rig.ok(
        "PATCH",
        &format!("{VMS}/web/adapters/legacy1"),
        r#"{"network":"other"}"#,
    )
    .await;
    rig.ok(
        "PATCH",
        &format!("{VMS}/web/adapters/legacy0"),
        r#"{"network":null}"#,
    )
    .await;
    assert_eq!(links(&rig).await, (json!(0), json!(1)));
    rig.ok(
        "PATCH",
        "/v1/networks/other/ports/web.legacy1",
        r#"{"link":"down"}"#,
    )
    .await;
    assert_eq!(links(&rig).await, (json!(0), json!(0)));
    act(&rig, "web", "turn-off").await;
}

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

#[tokio::test]
async fn what_can_never_boot_from_the_network_is_warned_of() {
    let (rig, boot) = rig().await;
    let body = r#"{"name":"web","synthetic":[{"network":"lab"}]}"#;
    let view = rig.ok("POST", VMS, body).await;
    let warning = view["warnings"][0].as_str().unwrap();
    assert!(warning.contains("has no legacy adapter"), "{warning}");
    let adapters = format!("{VMS}/web/adapters");
    let view = rig.ok("POST", &adapters, r#"{"network":"lab"}"#).await;
    let warning = view["warnings"][0].as_str().unwrap();
    assert!(warning.contains("legacy.rom' is not there"), "{warning}");
    let kernel = boot.trim_start_matches("kernel:");
    let body = format!(r#"{{"boot_rom":"{kernel}"}}"#);
    let view = rig.ok("PATCH", &format!("{VMS}/web"), &body).await;
    assert_eq!(view["warnings"], json!([]));
    rig.ok("PATCH", &format!("{VMS}/web"), r#"{"boot_rom":null}"#)
        .await;
    rig.ok("DELETE", &format!("{adapters}/legacy0"), "").await;
    let body = format!(r#"{{"boot":"{boot}"}}"#);
    let view = rig.ok("PATCH", &format!("{VMS}/web"), &body).await;
    assert_eq!(view["warnings"], json!([]));
}

#[tokio::test]
async fn a_modern_vm_has_more_and_becomes_classic_only_with_less() {
    let (rig, boot) = rig().await;
    let more = r#","profile":"modern","cpus":64,"memory":"65G""#;
    let view = create(&rig, &boot, "large", more).await;
    assert_eq!(
        (&view["cpus"], &view["memory"]),
        (&json!(64), &json!("66560M"))
    );
    let path = format!("{VMS}/large");
    let patch = |body: &'static str| ("PATCH", path.as_str(), body);
    for (body, why) in [
        (r#"{"profile":"classic"}"#, "'64' is not allowed"),
        (
            r#"{"profile":"classic","cpus":4}"#,
            "'66560M' is not allowed",
        ),
        (
            r#"{"profile":"classic","memory":"64G"}"#,
            "'64' is not allowed",
        ),
        (r#"{"cpus":65}"#, "'65' is not allowed; allowed: 1 to 64"),
    ] {
        rig.refused(patch(body), 400, why).await;
    }
    let body = r#"{"profile":"classic","cpus":4,"memory":"64G"}"#;
    let view = rig.ok("PATCH", &path, body).await;
    assert_eq!(view["profile"], "classic");
}
