//! Finds the C library libnbd with pkg-config and links it.

/// The oldest release whose functions `src/sys.rs` declares and the tests run against.
const LIBNBD_MIN: &str = "1.14";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Err(reason) = pkg_config::Config::new()
        .atleast_version(LIBNBD_MIN)
        .probe("libnbd")
    {
        eprintln!("\nerror: the C library libnbd {LIBNBD_MIN} or newer was not found.");
        eprintln!("  Debian, Ubuntu:             apt install libnbd-dev pkg-config");
        eprintln!("  Fedora, RHEL, CentOS Stream: dnf install libnbd-devel pkgconf-pkg-config");
        eprintln!("  elsewhere: put the directory of libnbd.pc into PKG_CONFIG_PATH");
        eprintln!("\npkg-config said: {reason}");
        std::process::exit(1);
    }
}
