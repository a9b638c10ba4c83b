//! A host that cannot run virtual machines is told why. What vswitchd makes of it is tested beside its code.

use std::process::Command;

use anyhow::{Result, ensure};
use vswitch_tests::paths;

/// What `vswitch-vmm --check` says in a mount namespace where `prepare` has run.
fn check(prepare: &str) -> Result<String> {
    let program = paths::program("vswitch-vmm")?;
    let script = format!("{prepare} && exec {} --check", program.display());
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()?;
    ensure!(!output.status.success(), "it could run virtual machines");
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn a_host_without_kvm_is_told_how_to_get_it() -> Result<()> {
    let said = check("mount -t tmpfs none /dev")?;
    ensure!(
        said.contains("there is no /dev/kvm: load the module"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_device_that_is_not_kvm_is_named() -> Result<()> {
    let said = check("mount -t tmpfs none /mnt && mknod /mnt/kvm c 1 3 && mount --bind /mnt /dev")?;
    ensure!(said.contains("/dev/kvm is not KVM's device"), "{said}");
    Ok(())
}
