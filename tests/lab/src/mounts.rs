//! Make the host's file systems read-only in the mount namespace in which we are.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// Make every mount read-only but those at or below one of these folders. `/`, `/home`, `/opt`… may be mounts of their
/// own, and a read-only mount says nothing of those below it.
pub(crate) fn make_read_only(except: &[PathBuf]) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("failed to read the mount table")?;
    for (point, options) in table.lines().filter_map(parse) {
        if except.iter().any(|kept| point.starts_with(kept)) {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | options;
        match mount(None::<&str>, &point, None::<&str>, flags, None::<&str>) {
            // Another mount covers it: nobody sees it.
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("failed to make {} read-only", point.display())),
        }
    }
    Ok(())
}

/// Mount point and options of a line of proc(5) mountinfo: `36 35 98:0 /root /mount/point rw,nosuid shared:1 - …`. A
/// remount drops all options that it does not repeat.
fn parse(line: &str) -> Option<(PathBuf, MsFlags)> {
    let mut fields = line.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let flags = options.split(',').map(|option| match option {
        "nosuid" => MsFlags::MS_NOSUID,
        "nodev" => MsFlags::MS_NODEV,
        "noexec" => MsFlags::MS_NOEXEC,
        "noatime" => MsFlags::MS_NOATIME,
        "nodiratime" => MsFlags::MS_NODIRATIME,
        "relatime" => MsFlags::MS_RELATIME,
        _ => MsFlags::empty(),
    });
    Some((unescape(point), flags.fold(MsFlags::empty(), |all, flag| all | flag)))
}

/// A space is `\040` in that file, and so on for tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                bytes.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Path::new(&OsString::from_vec(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let (point, flags) =
            parse("36 35 98:0 / /mnt/two\\040words rw,nosuid,noatime shared:1 - ext4 /dev/x rw").unwrap();
        assert_eq!(point, Path::new("/mnt/two words"));
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_NOATIME);
        assert_eq!(parse("nonsense"), None);
    }
}
