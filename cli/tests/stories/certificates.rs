//! Certificates for stories about TLS, in the files that libnbd and QEMU look for.

use crate::world::{World, tool};

/// Who signs certificates. Its files have a folder of their own.
pub(crate) struct Authority<'a> {
    world: &'a World,
    name: &'static str,
}

const NEW_KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

impl<'a> Authority<'a> {
    /// A new one, trusted by nobody.
    pub(crate) fn new(world: &'a World, name: &'static str) -> Self {
        std::fs::create_dir(world.path(name)).unwrap();
        let authority = Self { world, name };
        let (certificate, key) = (authority.file("ca-cert.pem"), authority.file("ca-key.pem"));
        let mut made = vec!["req", "-x509", "-subj", "/CN=Authority", "-days", "2"];
        made.extend(NEW_KEY);
        made.extend(["-keyout", &key, "-out", &certificate]);
        tool("openssl", &made);
        authority
    }

    /// A certificate for `localhost` and its key: `NAME-cert.pem` and `NAME-key.pem`.
    pub(crate) fn sign(&self, name: &str) -> [String; 2] {
        let certificate = self.file(&format!("{name}-cert.pem"));
        let key = self.file(&format!("{name}-key.pem"));
        let (request, names) = (self.file("request.pem"), self.file("names"));
        let mut asked = vec!["req", "-new", "-subj", "/CN=localhost"];
        asked.extend(NEW_KEY);
        asked.extend(["-keyout", &key, "-out", &request]);
        tool("openssl", &asked);
        std::fs::write(&names, "subjectAltName=DNS:localhost\n").unwrap();
        let (ca, ca_key) = (self.file("ca-cert.pem"), self.file("ca-key.pem"));
        let mut sign = vec!["x509", "-req", "-days", "2", "-CAcreateserial"];
        sign.extend(["-in", &request, "-CA", &ca, "-CAkey", &ca_key]);
        sign.extend(["-extfile", &names, "-out", &certificate]);
        tool("openssl", &sign);
        [certificate, key]
    }

    /// A new folder for somebody who trusts this authority, and has no certificate.
    pub(crate) fn trusted_in(&self, folder: &str) -> String {
        std::fs::create_dir(self.world.path(folder)).unwrap();
        let copied = self.world.path(folder).join("ca-cert.pem");
        std::fs::copy(self.file("ca-cert.pem"), copied).unwrap();
        self.world.text(folder)
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> String {
        self.world.text(self.name)
    }

    /// One of its files.
    pub(crate) fn file(&self, file: &str) -> String {
        self.world.text(&format!("{}/{file}", self.name))
    }
}
