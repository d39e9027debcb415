//! KSM: the kernel merges pages that hold the same bytes.

use std::fs;
use std::io::{self, ErrorKind};

use super::{CAP_SYS_ADMIN, is_capable_of};

const KSM: &str = "/sys/kernel/mm/ksm";

/// A setting of KSM. Dropping the value restores the previous setting.
pub(crate) struct Setting {
    path: String,
    before: String,
}

impl Setting {
    fn set(name: &str, value: &str) -> io::Result<Self> {
        let path = format!("{KSM}/{name}");
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

/// Makes the kernel scan for pages to merge all the time, and replace pages of zeroes by the zero page.
///
/// `Err` names what the machine lacks for this.
pub(crate) fn switch_on() -> Result<Vec<Setting>, String> {
    let mut settings = Vec::new();
    for (name, value) in
        [("use_zero_pages", "1"), ("sleep_millisecs", "1"), ("smart_scan", "0"), ("run", "1")]
    {
        match Setting::set(name, value) {
            // Older kernels do not have this setting, and always scan all pages.
            Err(error) if name == "smart_scan" && error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("the kernel has no KSM, or not all of it: {name}: {error}"));
            }
            Err(error) if !is_capable_of(CAP_SYS_ADMIN) => {
                return Err(format!("KSM cannot be switched on: {name}: {error}"));
            }
            setting => settings.push(setting.unwrap()),
        }
    }
    // The tests need these counts.
    match count("ksm_zero_pages ") {
        Some(_) => Ok(settings),
        None => Err("the kernel does not report how many pages it merged into the zero page".into()),
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

/// Returns how often the kernel has scanned all pages that it may merge.
pub(crate) fn full_scans() -> u64 {
    fs::read_to_string(format!("{KSM}/full_scans")).unwrap().trim().parse().unwrap()
}

/// Returns how many pages of this process were replaced by the zero page.
pub(crate) fn zero_pages() -> u64 {
    count("ksm_zero_pages ").unwrap()
}

/// Returns how many pages of this process were merged with others.
pub(crate) fn merged_pages() -> u64 {
    count("ksm_merging_pages ").unwrap()
}

/// Returns a count of this process, if the kernel reports it.
fn count(name: &str) -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/ksm_stat").ok()?;
    let count = stat.lines().find_map(|line| line.strip_prefix(name))?;
    Some(count.trim().parse().unwrap())
}
