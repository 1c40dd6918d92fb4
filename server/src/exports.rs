//! The trait that finds exports by name, and a plain list of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::Client;
use crate::export::{Export, ExportError};

/// Lists and opens exports. It is asked anew by every client, so exports may come and go while the
/// server runs; a connection keeps the export that it opened.
///
/// Within one handshake a name is opened once as long as the client keeps to that name, so that
/// what it was told about the export is true of the one it gets.
pub trait Exports: Send + Sync {
    /// What `NBD_OPT_LIST` tells the client. Where the list is long, clients that get the same had better
    /// share it.
    fn list(&self, client: &Client) -> Result<Arc<[Listing]>, ExportError>;

    /// Opens the export of this name for the client. The empty name stands for the default export, if any.
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn Export>, OpenError>;
}

/// The registry that a program keeps a handle on, to change it while it is served.
impl<E: Exports + ?Sized> Exports for Arc<E> {
    fn list(&self, client: &Client) -> Result<Arc<[Listing]>, ExportError> {
        E::list(self, client)
    }

    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn Export>, OpenError> {
        E::open(self, name, client)
    }
}

/// One export in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its name, at most 4096 bytes.
    pub name: String,
    /// For a human reader; may be empty.
    pub description: String,
}

/// Why an export cannot be opened. The text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is none of this name, or it cannot be opened now.
    #[error("{0}")]
    Unavailable(String),
    /// There is one, but not for this client.
    #[error("{0}")]
    Refused(String),
}

/// A fixed set of exports, in the order of their names.
#[derive(Default, Clone)]
pub struct ExportMap {
    exports: BTreeMap<String, Arc<dyn Export>>,
}

impl ExportMap {
    /// No exports.
    pub fn new() -> Self {
        ExportMap::default()
    }

    /// Adds an export, replacing one of the same name. The empty name makes it the default.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, export: Arc<dyn Export>) -> Self {
        self.exports.insert(name.into(), export);
        self
    }
}

impl Exports for ExportMap {
    fn list(&self, _: &Client) -> Result<Arc<[Listing]>, ExportError> {
        let listing = |(name, export): (&String, &Arc<dyn Export>)| Listing {
            name: name.clone(),
            description: export.description().unwrap_or_default(),
        };
        Ok(self.exports.iter().map(listing).collect())
    }

    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn Export>, OpenError> {
        self.exports
            .get(name)
            .cloned()
            .ok_or_else(|| OpenError::Unavailable(format!("no export is named {name:?}")))
    }
}
