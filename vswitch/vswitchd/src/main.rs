//! `vswitchd`: the host daemon. It starts the workers, brings the stored networks back, and serves the API.

mod backend;
mod host;
mod http;
mod mac_pool;
mod manager;
mod settings;
mod socket;
mod store;
mod vm;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use vswitch::control::Switch;

use backend::Host;
use http::{Access, Shared};
use manager::{Manager, VmHost};
use settings::{Args, Settings};
use socket::ApiSocket;
use store::Store;
use vm::{Door, Files, VmmProgram};

/// How often ports that are down are tried again, and loads are read.
const TICK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Args::parse();
    match start_log().and_then(|()| run(Settings::new(args)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("{reason:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is logged unless `VSWITCH_LOG` says otherwise. netlink_proto warns of each message that nobody waits for.
const LOG: &str = "info,netlink_proto=error";

fn start_log() -> anyhow::Result<()> {
    let filter = std::env::var("VSWITCH_LOG").unwrap_or_else(|_| LOG.to_owned());
    let parsed = tracing_subscriber::EnvFilter::try_new(&filter);
    let usable = parsed.as_ref().map_or_else(|_| LOG.into(), Clone::clone);
    tracing_subscriber::fmt()
        .with_env_filter(usable)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    parsed.map(drop).with_context(|| {
        format!("VSWITCH_LOG '{filter}' is no filter; allowed: as info or vswitchd=debug,warn")
    })
}

/// Lets this process have as many open files as it may: each port has some, and the usual limit, 1024, is one of old
/// programs that call select(2).
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    raise_open_files();
    let group = settings
        .group
        .as_deref()
        .map(socket::group_id)
        .transpose()?;
    socket::make_dir(&settings.state_dir, 0o700)?;
    socket::make_dir(&settings.run_dir, 0o755)?;
    let _lock = socket::lock(&settings.state_dir)?;
    let store = Store::open(&settings.state_dir.join("state.db"))?;
    // Made before any thread starts, as it changes the process' umask for a moment.
    let (socket, listener) = ApiSocket::bind(settings.run_dir.join("api.sock"), group)?;
    let switch = Switch::start(&settings.cores)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let host: Box<dyn Host> = Box::new(host::LinuxHost);
    let vm_host = VmHost {
        launcher: Box::new(VmmProgram {
            configured: settings.vmm,
        }),
        door: Door::open(settings.run_dir.join("attach.sock"))?,
        files: Files::new(
            &settings.state_dir,
            &settings.run_dir,
            socket.group,
            settings.firmware,
            settings.legacy_rom,
        )?,
        macs: settings.mac_pool,
    };
    runtime.block_on(serve(
        Manager::new(switch, host, vm_host, store),
        listener,
        Access::new(socket.group),
    ))?;
    info!("stopped");
    Ok(())
}

async fn serve(
    manager: Manager,
    listener: std::os::unix::net::UnixListener,
    access: Access,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let shared = Shared::new(manager);
    shared.with(Manager::restore).await?;
    let ticker = tokio::spawn(tick(shared.clone()));
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping");
        notify(sd_notify::NotifyState::Stopping);
    };
    info!("ready");
    notify(sd_notify::NotifyState::Ready);
    let served = http::serve(listener, http::router(shared.clone(), access), stop).await;
    ticker.abort();
    shared
        .blocking(|manager| {
            vm::verbs::stop_all(manager);
            Ok(())
        })
        .await?;
    shared
        .with(|manager| {
            manager.stop();
            Ok(())
        })
        .await?;
    served
}

/// Tells systemd, where it asked to be told.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(reason) = sd_notify::notify(&[state]) {
        error!("cannot notify systemd: {reason}");
    }
}

async fn tick(shared: Shared) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(refusal) = shared
            .with(|manager| {
                manager.tick();
                Ok(())
            })
            .await
        {
            error!("{refusal}");
        }
        let starts = shared.clone();
        // Not waited for: a machine may take its time to start.
        tokio::spawn(async move {
            let started = starts.blocking(|manager| {
                vm::verbs::start_due(manager);
                Ok(())
            });
            if let Err(refusal) = started.await {
                error!("{refusal}");
            }
        });
    }
}
