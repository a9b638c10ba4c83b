//! A network that machines boot from: DHCP, TFTP and HTTP in a namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{COMMAND_LINE, NO_IPV6, image::VmImage};
use crate::{Background, Netns, cmd, guest::image::static_busybox, station::Address};

const LISTEN_LIMIT: Duration = Duration::from_secs(5);
/// The hosts that are given to machines that ask.
const FIRST: u8 = 100;
const LAST: u8 = 199;
/// The file that machines are told to get by TFTP.
const SCRIPT: &str = "boot.ipxe";

/// Running servers on one interface. They end with this value.
#[derive(Debug)]
pub struct Netboot {
    dnsmasq: Background,
    httpd: Background,
    dir: TempDir,
    address: Address,
}

impl Netboot {
    /// Starts dnsmasq and busybox's httpd at `address`, which interface `ifname` of `netns` must have.
    ///
    /// # Errors
    /// When a program is missing or does not listen.
    pub fn start(netns: &Arc<Netns>, ifname: &str, address: Address) -> Result<Self> {
        let dir = TempDir::new()?;
        for folder in ["tftp", "http"] {
            fs::create_dir(dir.path().join(folder))?;
        }
        let log = fs::File::create(dir.path().join("dnsmasq.log"))?;
        let mut command = netns.command("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            // It would ask by ping, for three seconds, whether somebody has the address it is going to give away.
            .args([
                "--no-ping",
                "--dhcp-authoritative",
                "--log-dhcp",
                "--log-facility=-",
            ])
            .args(["--user=root", "--bind-interfaces", "--enable-tftp"])
            .arg(format!("--interface={ifname}"))
            .arg(format!(
                "--dhcp-range={},{},1h",
                host(address, FIRST),
                host(address, LAST)
            ))
            .arg(format!("--dhcp-boot={SCRIPT}"))
            .arg(format!(
                "--dhcp-leasefile={}",
                dir.path().join("leases").display()
            ))
            .arg(format!("--tftp-root={}", dir.path().join("tftp").display()))
            .stdout(log.try_clone()?)
            .stderr(log);
        let dnsmasq = Background::spawn(&mut command)?;
        let listen = format!("{}:80", address.ip(false));
        let root = dir.path().join("http").display().to_string();
        let httpd = netns.spawn(&[
            &static_busybox()?,
            "httpd",
            "-f",
            "-p",
            &listen,
            "-h",
            &root,
        ])?;
        let mut servers = Self {
            dnsmasq,
            httpd,
            dir,
            address,
        };
        let ready = cmd::wait_until("dnsmasq and httpd to listen", LISTEN_LIMIT, || {
            servers.dnsmasq.must_run()?;
            servers.httpd.must_run()?;
            let listening = |options, port: &str| -> Result<bool> {
                let argv = ["ss", "-Hln", options, "sport", "=", port];
                Ok(!netns.run(&argv)?.is_empty())
            };
            Ok(listening("-u", "69")? && listening("-t", "80")?)
        });
        ready.with_context(|| format!("dnsmasq said: {}", servers.log()))?;
        Ok(servers)
    }

    /// Offers `bytes` by HTTP as `/NAME` and returns their SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn offer(&self, name: &str, bytes: &[u8]) -> Result<String> {
        fs::write(self.dir.path().join("http").join(name), bytes)?;
        Ok(format!("{:x}", Sha256::digest(bytes)))
    }

    /// Offers a file by HTTP as `/NAME`.
    ///
    /// # Errors
    /// When it cannot be linked or copied.
    pub fn offer_file(&self, name: &str, file: &Path) -> Result<()> {
        let to = self.dir.path().join("http").join(name);
        fs::copy(file, &to).with_context(|| format!("copying {}", file.display()))?;
        Ok(())
    }

    /// Offers a file, packed by gzip, by HTTP as `/NAME`: what a slow guest gets of it is short.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn offer_packed(&self, name: &str, file: &Path) -> Result<()> {
        let to = fs::File::create(self.dir.path().join("http").join(name))?;
        let status = Command::new("gzip").arg("-c").arg(file).stdout(to).status();
        let status = status.context("starting gzip")?;
        ensure!(status.success(), "gzip ended with {status}");
        Ok(())
    }

    /// The script that iPXE is given by TFTP.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn script(&self, text: &str) -> Result<()> {
        let path: PathBuf = self.dir.path().join("tftp").join(SCRIPT);
        fs::write(&path, format!("#!ipxe\n{text}")).context("writing iPXE's script")
    }

    /// Offers `image`'s kernel and initrd with a script that starts them, and `bytes` as `/file`; returns their hash.
    ///
    /// # Errors
    /// As [`Netboot::offer`].
    pub fn offer_guest(&self, image: &VmImage, bytes: &[u8]) -> Result<String> {
        self.offer_file("linux", &image.network_kernel)?;
        self.offer_file("initrd", &image.initrd)?;
        // The lease goes on with the kernel, which then need not ask for it again.
        self.script(&format!(
            "kernel {} {COMMAND_LINE} {NO_IPV6} ip=${{ip}}:::${{netmask}}::eth0:off\ninitrd {}\nboot\n",
            self.url("linux"),
            self.url("initrd"),
        ))?;
        self.offer("file", bytes)
    }

    /// The URL of `/NAME`.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address.ip(false))
    }

    /// What dnsmasq said: requests, answers and files sent.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("dnsmasq.log")).unwrap_or_default()
    }
}

fn host(address: Address, host: u8) -> String {
    Address { host, ..address }.ip(false)
}

/// `len` bytes that repeat with no period a segment or page could hide.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let blocks = (0_u64..).flat_map(|number| Sha256::digest(number.to_le_bytes()).to_vec());
    blocks.take(len).collect()
}
