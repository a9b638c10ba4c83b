//! The API driven in process: the real switch, manager and store, and a host that is only pretended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{bail, ensure};
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::Request;
use nix::unistd::Gid;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use vswitch::api::{IfName, Link, Mtu, PortBackend, PortState, StationMac, VmName};
use vswitch::control::Switch;

use super::super::access::Peer;
use super::super::{Access, Shared, router};
use crate::backend::{Backend, Fate, Host, LooseUplink, Open};
use crate::manager::{Manager, VmHost};
use crate::store::Store;
use crate::vm::{Door, Files, Launcher, verbs};

/// What the pretended host has.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub(super) struct World {
    /// Interfaces, and the addresses they have.
    pub(super) interfaces: BTreeMap<String, Vec<String>>,
    /// The MAC addresses of some of them.
    pub(super) macs: BTreeMap<String, StationMac>,
    /// MTUs of uplinks that are not 1501, or were restored.
    pub(super) uplink_mtus: BTreeMap<String, u32>,
    /// What is open: targets with their MTU and link.
    pub(super) open: BTreeMap<String, (u16, Link)>,
    /// Targets that cannot be opened, or whose settings cannot be changed.
    pub(super) broken: BTreeSet<String>,
    /// Uplinks that the network stack leaves alone.
    pub(super) quiet: BTreeSet<String>,
    /// Addresses cannot be moved.
    pub(super) addresses_stuck: bool,
    /// Why there can be no VMs.
    pub(super) no_kvm: Option<String>,
}

#[derive(Clone)]
struct FakeHost(Arc<Mutex<World>>);

impl FakeHost {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl Host for FakeHost {
    fn check_uplink(&self, uplink: &IfName) -> anyhow::Result<u32> {
        let world = self.world();
        ensure!(
            world.interfaces.contains_key(uplink.as_str()),
            "there is no interface '{uplink}'"
        );
        Ok(world
            .uplink_mtus
            .get(uplink.as_str())
            .copied()
            .unwrap_or(1501))
    }

    fn mac(&self, interface: &IfName) -> anyhow::Result<Option<StationMac>> {
        Ok(self.world().macs.get(interface.as_str()).copied())
    }

    fn settings(&self, uplink: &IfName) -> anyhow::Result<String> {
        let quiet = self.world().quiet.contains(uplink.as_str());
        Ok(quiet.to_string())
    }

    fn quieten(&self, uplink: &IfName) {
        self.world().quiet.insert(uplink.as_str().to_owned());
    }

    fn release(&self, loose: &LooseUplink) -> anyhow::Result<()> {
        let uplink = loose.uplink.as_str();
        let mut world = self.world();
        ensure!(
            !world.open.contains_key(uplink),
            "'{uplink}' is bound still"
        );
        if loose.settings.as_deref() != Some("true") {
            world.quiet.remove(uplink);
        }
        if let Some(mtu) = loose.mtu {
            world.uplink_mtus.insert(uplink.to_owned(), mtu);
        }
        if let Some(moved) = &loose.moved {
            let (_, nic, addresses): (String, String, Vec<String>) = serde_json::from_str(moved)?;
            if let Some(nic) = world.interfaces.get_mut(&nic) {
                nic.retain(|address| !addresses.contains(address));
            }
            if let Some(uplink) = world.interfaces.get_mut(uplink) {
                *uplink = addresses;
            }
        }
        Ok(())
    }

    fn check_unused(&self, host_nic: &IfName) -> anyhow::Result<()> {
        ensure!(
            !self.world().interfaces.contains_key(host_nic.as_str()),
            "there is an interface '{host_nic}' already"
        );
        Ok(())
    }

    fn open(&self, what: &Open<'_>) -> anyhow::Result<Box<dyn Backend>> {
        let target = what.backend.target().into_owned();
        if let PortBackend::Uplink { interface } = what.backend {
            self.check_uplink(interface)?;
        }
        let mut world = self.world();
        ensure!(!world.broken.contains(&target), "'{target}' is broken");
        ensure!(!world.open.contains_key(&target), "'{target}' is busy");
        let is_host_nic = matches!(what.backend, PortBackend::HostNic { .. });
        if is_host_nic {
            if let (Some(mac), false) = (what.host_mac, world.interfaces.contains_key(&target)) {
                world.macs.insert(target.clone(), mac);
            }
            world.interfaces.entry(target.clone()).or_default();
        }
        world
            .open
            .insert(target.clone(), (what.mtu.get(), what.link));
        Ok(Box::new(FakeBackend {
            host: self.clone(),
            target,
            is_host_nic,
        }))
    }

    fn addresses(&self, interface: &IfName) -> anyhow::Result<Vec<String>> {
        Ok(self.world().interfaces[interface.as_str()].clone())
    }

    fn begin_record(&self, from: &IfName, to: &IfName) -> anyhow::Result<String> {
        let addresses = self.addresses(from)?;
        Ok(serde_json::to_string(&(from, to, addresses))?)
    }

    fn move_addresses(
        &self,
        from: &IfName,
        to: &IfName,
        before: Option<&str>,
    ) -> anyhow::Result<String> {
        let mut world = self.world();
        if world.addresses_stuck {
            bail!("the kernel refuses");
        }
        let (_, _, mut record): (String, String, Vec<String>) = match before {
            Some(before) => serde_json::from_str(before)?,
            None => Default::default(),
        };
        world.quiet.insert(from.as_str().to_owned());
        let moved = std::mem::take(world.interfaces.get_mut(from.as_str()).unwrap());
        record.retain(|address| !moved.contains(address));
        record.extend(moved.clone());
        world.interfaces.get_mut(to.as_str()).unwrap().extend(moved);
        Ok(serde_json::to_string(&(from, to, record))?)
    }

    fn return_addresses(
        &self,
        host_nic: &IfName,
        uplink: &IfName,
        record: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut world = self.world();
        if world.addresses_stuck {
            bail!("the kernel refuses");
        }
        let moved = match (world.interfaces.get_mut(host_nic.as_str()), record) {
            (Some(present), _) => std::mem::take(present),
            (None, Some(record)) => serde_json::from_str::<(String, String, _)>(record)?.2,
            (None, None) => Vec::new(),
        };
        world.quiet.remove(uplink.as_str());
        let back = world.interfaces.get_mut(uplink.as_str()).unwrap();
        back.extend(moved);
        Ok(())
    }

    fn delete_host_nic(&self, host_nic: &IfName) -> anyhow::Result<()> {
        let mut world = self.world();
        world.interfaces.remove(host_nic.as_str());
        world.macs.remove(host_nic.as_str());
        Ok(())
    }
}

struct FakeBackend {
    host: FakeHost,
    target: String,
    is_host_nic: bool,
}

impl FakeBackend {
    fn set(&self, change: impl FnOnce(&mut (u16, Link))) -> anyhow::Result<()> {
        let mut world = self.host.world();
        ensure!(
            !world.broken.contains(&self.target),
            "'{}' is broken",
            self.target
        );
        change(world.open.get_mut(&self.target).unwrap());
        Ok(())
    }
}

impl Backend for FakeBackend {
    fn close(self: Box<Self>, fate: Fate) {
        let mut world = self.host.world();
        world.open.remove(&self.target);
        if self.is_host_nic && fate == Fate::Delete {
            world.interfaces.remove(&self.target);
            world.macs.remove(&self.target);
        }
    }

    fn status(&self) -> (PortState, Option<String>) {
        (PortState::Up, None)
    }

    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()> {
        self.set(|settings| settings.0 = mtu.get())
    }

    fn set_link(&mut self, link: Link) -> anyhow::Result<()> {
        self.set(|settings| settings.1 = link)
    }
}

/// A vswitchd without sockets.
pub(super) struct Rig {
    dir: TempDir,
    host: FakeHost,
    pub(super) shared: Shared,
}

impl Rig {
    /// With interfaces eth0, which has addresses, and eth1, which has none.
    pub(super) fn new() -> Rig {
        let host = FakeHost(Arc::default());
        host.world().interfaces.insert(
            "eth0".into(),
            vec!["192.0.2.1/24".into(), "2001:db8::1/64".into()],
        );
        host.world().interfaces.insert("eth1".into(), Vec::new());
        let dir = tempfile::tempdir().unwrap();
        let shared = start(dir.path(), &host);
        Rig { dir, host, shared }
    }

    /// As after SIGTERM, or after SIGKILL: without the orderly stop, the kernel closes what was open.
    pub(super) async fn restart(self, orderly: bool, between: impl FnOnce(&mut World)) -> Rig {
        let Rig { dir, host, shared } = self;
        if orderly {
            shared
                .blocking(|manager| {
                    verbs::stop_all(manager);
                    Ok(())
                })
                .await
                .unwrap();
            shared
                .with(|manager| {
                    manager.stop();
                    Ok(())
                })
                .await
                .unwrap();
        }
        let severed = shared.with(|manager| {
            manager.sever();
            Ok(())
        });
        severed.await.unwrap();
        drop(shared);
        host.world().open.clear();
        between(&mut host.world());
        let shared = start(dir.path(), &host);
        shared.with(Manager::restore).await.unwrap();
        Rig { dir, host, shared }
    }

    /// The host as it is now.
    pub(super) fn world(&self) -> World {
        self.host.world().clone()
    }

    /// Changes the host behind vswitchd's back.
    pub(super) fn change_world(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.host.world());
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs SQL on the store behind vswitchd's back.
    pub(super) fn sql(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.path("state.db")).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// From now on a transaction that does `what` (as `INSERT ON network`) cannot be committed.
    pub(super) fn spoil_commit(&self, what: &str) {
        self.sql(&format!(
            "CREATE TABLE spoilt (x TEXT REFERENCES network (name) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER spoil AFTER {what} BEGIN INSERT INTO spoilt VALUES ('nobody'); END;"
        ));
    }

    /// The rows of all tables.
    pub(super) fn rows(&self) -> i64 {
        let connection = rusqlite::Connection::open(self.path("state.db")).unwrap();
        let count = "SELECT (SELECT count(*) FROM network) + (SELECT count(*) FROM port) \
                     + (SELECT count(*) FROM static_entry) + (SELECT count(*) FROM host_change) \
                     + (SELECT count(*) FROM loose_uplink) + (SELECT count(*) FROM vm) + (SELECT count(*) FROM adapter)";
        connection.query_row(count, [], |row| row.get(0)).unwrap()
    }

    /// A request of root.
    pub(super) async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.call_as(Some((0, 0)), method, path, body).await
    }

    pub(super) async fn call_as(
        &self,
        ids: Option<(u32, u32)>,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, Value) {
        let (status, bytes) = self.bytes(ids, method, path, body).await;
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap()
        };
        (status, value)
    }

    pub(super) async fn bytes(
        &self,
        ids: Option<(u32, u32)>,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, Vec<u8>) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::from(body.to_owned()))
            .unwrap();
        request.extensions_mut().insert(ConnectInfo(Peer { ids }));
        let router = router(self.shared.clone(), Access::new(Gid::from_raw(60_001)));
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (
            status,
            to_bytes(response.into_body(), usize::MAX)
                .await
                .unwrap()
                .to_vec(),
        )
    }

    /// A request that must succeed.
    pub(super) async fn ok(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path} {body}: {status} {answer}"
        );
        answer
    }

    /// A request that must be refused with `status`; the message must contain `why`.
    pub(super) async fn refused(&self, call: (&str, &str, &str), status: u16, why: &str) {
        let (method, path, body) = call;
        let (found, answer) = self.call(method, path, body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
        assert!(message.contains(why), "{method} {path} {body}: {message}");
        assert!(answer["error"]["code"].is_string());
    }
}

fn start(dir: &Path, host: &FakeHost) -> Shared {
    let switch = Switch::start(&[0]).unwrap();
    let group = Gid::current();
    let vm_host = VmHost {
        launcher: Box::new(FakeLauncher(host.clone())),
        door: Door::open(dir.join("attach.sock")).unwrap(),
        files: Files::new(dir, dir, group, None, Some(dir.join("legacy.rom"))).unwrap(),
        macs: Some("52:00:00:00:00:00-52:00:00:00:00:07".parse().unwrap()),
    };
    Shared::new(Manager::new(
        switch,
        Box::new(host.clone()),
        vm_host,
        Store::open(&dir.join("state.db")).unwrap(),
    ))
}

/// Starts this test program again, as what [`super::fake_vmm::fake_vmm`] does.
struct FakeLauncher(FakeHost);

impl Launcher for FakeLauncher {
    fn check(&self) -> anyhow::Result<()> {
        match &self.0.world().no_kvm {
            None => Ok(()),
            Some(why) => bail!("this host cannot run VMs: {why}"),
        }
    }

    fn command(&self, name: &VmName, socket: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "http::tests::fake_vmm::fake_vmm"])
            .env("FAKE_VMM", name.as_str())
            .env("FAKE_VMM_SOCKET", socket)
            .stdout(Stdio::null());
        Ok(command)
    }
}
