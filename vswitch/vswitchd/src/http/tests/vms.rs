//! VMs through the API, with processes that only speak the protocol.

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
