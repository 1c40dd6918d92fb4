//! Certificates made on the spot, in the files that libnbd and QEMU look for.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each of those who share this uses a part of it"
)]

use std::fs;
use std::process::Command;

use tempfile::TempDir;

/// Who signs certificates, in a folder with those of a server at `localhost` and of a client, in which
/// both find what they need.
pub struct Authority {
    dir: TempDir,
}

const NEW_KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

/// How many days a certificate is good for; negative where it has expired.
const GOOD: &str = "2";
const EXPIRED: &str = "-1";

impl Authority {
    /// A new one, trusted by nobody.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority { dir };
        let (certificate, key) = (authority.file("ca-cert.pem"), authority.file("ca-key.pem"));
        let mut args = vec!["req", "-x509", "-subj", "/CN=Authority", "-days", GOOD];
        args.extend(NEW_KEY);
        args.extend(["-keyout", &key, "-out", &certificate]);
        openssl(&args);
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\n";
        authority.sign("server", names, GOOD);
        authority.sign("client", FOR_CLIENTS, GOOD);
        authority
    }

    fn sign(&self, name: &str, extensions: &str, days: &str) {
        let (request, list) = (self.file("request.pem"), self.file("extensions"));
        let key = self.file(&format!("{name}-key.pem"));
        let mut args = vec!["req", "-new", "-subj", "/CN=localhost"];
        args.extend(NEW_KEY);
        args.extend(["-keyout", &key, "-out", &request]);
        openssl(&args);
        fs::write(&list, extensions).expect("written");
        let (ca, ca_key) = (self.file("ca-cert.pem"), self.file("ca-key.pem"));
        let certificate = self.file(&format!("{name}-cert.pem"));
        let mut args = vec!["x509", "-req", "-days", days, "-CAcreateserial"];
        args.extend(["-in", &request, "-CA", &ca, "-CAkey", &ca_key]);
        args.extend(["-extfile", &list, "-out", &certificate]);
        openssl(&args);
    }

    /// Its folder.
    pub fn folder(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A client who trusts this authority, and has no certificate.
    pub fn anonymous_client(&self) -> ClientFolder {
        ClientFolder(self.copied(&["ca-cert.pem"]))
    }

    /// A client who trusts this authority, but has a certificate of another, which it trusts, too: QEMU
    /// shows no other.
    pub fn client_of(&self, other: &Authority) -> ClientFolder {
        let folder = other.copied(&["client-cert.pem", "client-key.pem"]);
        let both = [self, other].map(|authority| fs::read(authority.file("ca-cert.pem")));
        let both = both.map(|certificate| certificate.expect("a certificate"));
        fs::write(folder.path().join("ca-cert.pem"), both.concat()).expect("written");
        ClientFolder(folder)
    }

    /// A client who trusts this authority, and whose certificate of it has expired.
    pub fn expired_client(&self) -> ClientFolder {
        let past = Authority {
            dir: self.copied(&["ca-cert.pem", "ca-key.pem"]),
        };
        past.sign("client", FOR_CLIENTS, EXPIRED);
        ClientFolder(past.dir)
    }

    /// A new folder with some of its files.
    fn copied(&self, names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for name in names {
            fs::copy(self.file(name), folder.path().join(name)).expect("copied");
        }
        folder
    }
}

const FOR_CLIENTS: &str = "extendedKeyUsage=clientAuth\n";

/// Where a client has its certificates.
pub struct ClientFolder(TempDir);

impl ClientFolder {
    /// Its name.
    pub fn folder(&self) -> String {
        self.0.path().display().to_string()
    }
}

fn openssl(args: &[&str]) {
    let ran = Command::new("openssl").args(args).output();
    let ran = ran.expect("openssl is installed");
    assert!(ran.status.success(), "{args:?}: {ran:?}");
}
