//! Who may depend on whom, and where unsafe code may be.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use vswitch_tests::paths;

use crate::cargo::{self, list, packages, text};

/// The packages of the workspace that each one may use. One that is not listed may use every other.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("guestmem", &[]),
    ("offload", &[]),
    ("vmq", &[]),
    ("hostif", &["guestmem"]),
    ("vswitch", &["guestmem", "offload", "vmq", "hostif"]),
    ("vnic-legacy", &["vswitch", "guestmem", "offload"]),
    ("vnic-synthetic", &["vswitch", "guestmem", "offload"]),
    ("hypervisor", &["guestmem"]),
    ("vswitchctl", &["vswitch"]),
    (
        "vswitchd",
        &[
            "vswitch",
            "vnic-legacy",
            "vnic-synthetic",
            "vmq",
            "hostif",
            "guestmem",
            "offload",
        ],
    ),
    (
        "vswitch-vmm",
        &[
            "hypervisor",
            "guestmem",
            "vnic-legacy",
            "vnic-synthetic",
            "vswitch",
            "offload",
        ],
    ),
];
/// The packages whose product code may contain unsafe code.
const UNSAFE: [&str; 2] = ["guestmem", "hostif"];
/// The folder of the hypervisor whose code may, too.
const UNSAFE_FOLDER: &str = "hypervisor/src/kvm/";
/// What follows the word where it is no text: blocks, items, attributes.
const AFTER_UNSAFE: [&str; 6] = [" {", " fn", " impl", " trait", " extern", "("];
/// What vswitchctl may use of the switch.
const CTL_USES: &str = "vswitch::api";

/// The rules that the workspace breaks, each a line that names the place.
pub(crate) fn broken_rules() -> Result<Vec<String>> {
    let metadata = cargo::metadata("Cargo.toml")?;
    let mut broken = forbidden_dependencies(&metadata);
    for package in packages(&metadata) {
        let (name, manifest) = (text(package, "name"), text(package, "manifest_path"));
        let folder = Path::new(manifest)
            .parent()
            .context("a manifest without a folder")?;
        for file in rust_files(&folder.join("src"))? {
            let source = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
            let place = file
                .trim_start_matches(&paths::workspace().display().to_string())
                .trim_start_matches('/');
            broken.extend(
                forbidden_lines(name, place, &source)
                    .into_iter()
                    .map(|(line, why)| format!("{place}:{line}: {why}")),
            );
        }
    }
    Ok(broken)
}

fn forbidden_dependencies(metadata: &Value) -> Vec<String> {
    let members: Vec<&str> = packages(metadata)
        .map(|package| text(package, "name"))
        .collect();
    let mut broken = Vec::new();
    for package in packages(metadata) {
        let name = text(package, "name");
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            continue;
        };
        // Tests may use what they like; a build script is product code.
        let used =
            list(package, "dependencies").filter(|dependency| text(dependency, "kind") != "dev");
        for other in used
            .map(|dependency| text(dependency, "name"))
            .filter(|other| members.contains(other))
        {
            if !allowed.contains(&other) {
                broken.push(format!(
                    "{name} depends on {other}; it may depend on {allowed:?}"
                ));
            }
        }
    }
    broken
}

/// The lines of a package's source that break a rule.
fn forbidden_lines(package: &str, place: &str, source: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    let may_be_unsafe = UNSAFE.contains(&package) || place.starts_with(UNSAFE_FOLDER);
    for (number, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let parts: Vec<&str> = code.split("unsafe").collect();
        let is_unsafe = parts.windows(2).any(|around| match around {
            [before, after] => {
                !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && AFTER_UNSAFE.iter().any(|next| after.starts_with(next))
            }
            _ => false,
        });
        if !may_be_unsafe && is_unsafe {
            let why = "unsafe code is for guestmem, hostif and the hypervisor's folder kvm only";
            found.push((number + 1, why));
        }
        let beyond_api = code
            .match_indices("vswitch::")
            .any(|(at, _)| !code.get(at..).is_some_and(|c| c.starts_with(CTL_USES)));
        if package == "vswitchctl" && beyond_api {
            found.push((
                number + 1,
                "vswitchctl uses vswitch::api and nothing else of the switch",
            ));
        }
    }
    found
}

fn rust_files(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.display().to_string());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(user: &str, used: &str, kind: Value) -> Value {
        serde_json::json!({"packages": [
            {"name": user, "dependencies": [{"name": used, "kind": kind}, {"name": "serde", "kind": null}]},
            {"name": used, "dependencies": []},
        ]})
    }

    #[test]
    fn a_forbidden_dependency_is_found() {
        assert_eq!(
            forbidden_dependencies(&workspace("offload", "vswitch", Value::Null)).len(),
            1
        );
        assert_eq!(
            forbidden_dependencies(&workspace("hostif", "vswitch", Value::Null)).len(),
            1
        );
    }

    #[test]
    fn allowed_and_test_dependencies_pass() {
        assert!(forbidden_dependencies(&workspace("vswitch", "offload", Value::Null)).is_empty());
        assert!(forbidden_dependencies(&workspace("offload", "vswitch", "dev".into())).is_empty());
    }

    #[test]
    fn unsafe_code_is_found_where_it_may_not_be() {
        let word = "unsafe";
        let source = format!(
            "// {word} {{ in a comment\nlet a = {word} {{ f() }};\n#![forbid({word}_code)]\n"
        );
        let lines: Vec<usize> = forbidden_lines("vswitch", "vswitch/src/lib.rs", &source)
            .iter()
            .map(|(line, _)| *line)
            .collect();
        assert_eq!(lines, [2]);
        assert!(forbidden_lines("guestmem", "hypervisor/guestmem/src/raw.rs", &source).is_empty());
        let hypervisor = |place| forbidden_lines("hypervisor", place, &source).len();
        assert_eq!(hypervisor("hypervisor/src/kvm/vm.rs"), 0);
        assert_eq!(hypervisor("hypervisor/src/machine.rs"), 1);
    }

    #[test]
    fn the_command_line_uses_the_api_only() {
        assert!(forbidden_lines("vswitchctl", "", "use vswitch::api::Status;").is_empty());
        assert_eq!(
            forbidden_lines("vswitchctl", "", "use vswitch::fdb::Fdb;").len(),
            1
        );
    }
}
