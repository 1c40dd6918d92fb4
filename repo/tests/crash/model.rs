//! A file system in memory that knows what of it would outlive a loss of power.
//!
//! Every file and every directory has two states: what programs see, and what is on the media. A
//! change waits between the two until it is synced. When power fails, each waiting change is kept,
//! lost, or (a write) kept sector by sector. Names are changed one at a time, each as a whole, but in
//! no promised order; content and names know nothing of each other. That is all that doc/format.md,
//! section 10, asks of the media, and less than ext4 and xfs promise.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};

use fastrand::Rng;

/// What is written as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A file or directory, whatever its names are.
pub(crate) type NodeId = usize;

/// What a loss of power does to changes that were not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Survival {
    /// All of them are lost.
    Nothing,
    /// All of them are kept: as when the process was killed and power stayed.
    Everything,
    /// Names are kept, content is lost.
    Names,
    /// Content is kept, names are lost.
    Content,
    /// Kept in order up to some moment; the write of that moment is torn.
    UpToAMoment,
    /// Each is kept, lost or torn by itself.
    ByChance,
}

/// What was done to a file.
#[derive(Clone)]
pub(crate) enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

/// What was done to the names in a directory.
#[derive(Clone)]
enum Naming {
    Add { name: String, node: NodeId },
    Remove { name: String },
    Move { from: String, to: String },
}

type Names = BTreeMap<String, NodeId>;

#[derive(Clone, Default)]
struct FileNode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    waiting: Vec<(u64, Change)>,
    names: usize,
    locked_by: Option<u64>,
}

#[derive(Clone, Default)]
struct Directory {
    seen: Names,
    durable: Names,
    waiting: Vec<(u64, Naming, NodeId)>,
}

#[derive(Clone)]
enum Node {
    File(FileNode),
    Directory(Directory),
}

/// All files and directories.
#[derive(Clone)]
pub(crate) struct Model {
    nodes: Vec<Node>,
    changes: u64,
    /// Room for bytes in files.
    pub(crate) capacity: usize,
}

impl Model {
    /// An empty root directory.
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::Directory(Directory::default())],
            changes: 0,
            capacity: usize::MAX,
        }
    }

    fn next(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    pub(crate) fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = 0;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
                let Node::Directory(directory) = &self.nodes[node] else {
                    return Err(io::ErrorKind::NotADirectory.into());
                };
                node = *directory.seen.get(name).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(node)
    }

    /// The directory of `path` and the name in it.
    fn place(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.find(parent)?, name.to_owned()))
    }

    fn directory(&mut self, node: NodeId) -> io::Result<&mut Directory> {
        match &mut self.nodes[node] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&mut self, node: NodeId) -> &mut FileNode {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Directory(_) => panic!("a directory is used as a file"),
        }
    }

    pub(crate) fn is_directory(&self, path: &Path) -> bool {
        let node = self.find(path);
        node.is_ok_and(|node| matches!(self.nodes[node], Node::Directory(_)))
    }

    pub(crate) fn entries(&mut self, path: &Path) -> io::Result<Vec<String>> {
        let node = self.find(path)?;
        Ok(self.directory(node)?.seen.keys().cloned().collect())
    }

    fn name(&mut self, directory: NodeId, naming: Naming, node: NodeId) -> io::Result<()> {
        let at = self.next();
        let directory = self.directory(directory)?;
        rename_in(&mut directory.seen, &naming, node);
        directory.waiting.push((at, naming, node));
        Ok(())
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<NodeId> {
        let (directory, name) = self.place(path)?;
        if self.directory(directory)?.seen.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.name(directory, Naming::Add { name, node }, node)?;
        Ok(node)
    }

    pub(crate) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        let file = FileNode {
            names: 1,
            ..FileNode::default()
        };
        self.add(path, Node::File(file))
    }

    pub(crate) fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        self.add(path, Node::Directory(Directory::default()))
            .map(drop)
    }

    pub(crate) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let node = self.find(path)?;
        let (directory, name) = self.place(path)?;
        self.file(node).names -= 1;
        self.name(directory, Naming::Remove { name }, node)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let node = self.find(from)?;
        if let Ok(there) = self.find(to) {
            if !replace {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.file(there).names -= 1;
        }
        let ((directory, from), (target, to)) = (self.place(from)?, self.place(to)?);
        assert_eq!(directory, target, "nothing moves between directories");
        self.name(directory, Naming::Move { from, to }, node)
    }

    pub(crate) fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        let node = self.find(path)?;
        let directory = self.directory(node)?;
        directory.durable.clone_from(&directory.seen);
        directory.waiting.clear();
        Ok(())
    }

    pub(crate) fn content(&mut self, node: NodeId) -> &[u8] {
        &self.file(node).seen
    }

    pub(crate) fn change(&mut self, node: NodeId, change: Change) -> io::Result<()> {
        let end = match &change {
            Change::Write { offset, bytes } => offset + bytes.len(),
            Change::Length(len) => *len,
        };
        let grows = end.saturating_sub(self.file(node).seen.len());
        if grows > 0 && self.bytes_used() + grows > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let at = self.next();
        let file = self.file(node);
        apply(&mut file.seen, &change, || true);
        file.waiting.push((at, change));
        Ok(())
    }

    /// A bit of what is stored flips.
    pub(crate) fn spoil(&mut self, node: NodeId, offset: usize) {
        let file = self.file(node);
        file.seen[offset] ^= 1;
        file.durable[offset] ^= 1;
    }

    pub(crate) fn sync(&mut self, node: NodeId) {
        let file = self.file(node);
        for (_, change) in file.waiting.drain(..) {
            apply(&mut file.durable, &change, || true);
        }
    }

    /// A sync that failed: what waited is taken for written from now on, but is not on the media.
    pub(crate) fn fail_sync(&mut self, node: NodeId) {
        self.file(node).waiting.clear();
    }

    pub(crate) fn is_linked(&mut self, node: NodeId) -> bool {
        self.file(node).names > 0
    }

    pub(crate) fn try_lock(&mut self, node: NodeId, holder: u64) -> bool {
        *self.file(node).locked_by.get_or_insert(holder) == holder
    }

    pub(crate) fn unlock(&mut self, node: NodeId, holder: u64) {
        let lock = &mut self.file(node).locked_by;
        lock.take_if(|by| *by == holder);
    }

    /// Bytes in files that have a name.
    pub(crate) fn bytes_used(&self) -> usize {
        let files = self.nodes.iter().map(|node| match node {
            Node::File(file) if file.names > 0 => file.seen.len(),
            _ => 0,
        });
        files.sum()
    }

    /// Nobody holds a lock any more.
    pub(crate) fn unlock_all(&mut self) {
        for node in &mut self.nodes {
            if let Node::File(file) = node {
                file.locked_by = None;
            }
        }
    }

    /// What is found after a loss of power.
    pub(crate) fn after_power_loss(&self, survival: Survival, rng: &mut Rng) -> Self {
        let moment = rng.u64(0..self.changes + 2);
        let mut after = Self {
            nodes: Vec::with_capacity(self.nodes.len()),
            changes: self.changes,
            capacity: self.capacity,
        };
        for node in &self.nodes {
            after.nodes.push(match node {
                Node::File(file) => Node::File(file.after_power_loss(survival, moment, rng)),
                Node::Directory(directory) => {
                    Node::Directory(directory.after_power_loss(survival, moment, rng))
                }
            });
        }
        after.count_names();
        after
    }

    fn count_names(&mut self) {
        let mut names = vec![0; self.nodes.len()];
        for node in &self.nodes {
            if let Node::Directory(directory) = node {
                directory.seen.values().for_each(|node| names[*node] += 1);
            }
        }
        for (node, names) in self.nodes.iter_mut().zip(names) {
            if let Node::File(file) = node {
                file.names = names;
            }
        }
    }
}

impl FileNode {
    fn after_power_loss(&self, survival: Survival, moment: u64, rng: &mut Rng) -> Self {
        let mut durable = self.durable.clone();
        for (at, change) in &self.waiting {
            let share = match survival {
                Survival::Nothing | Survival::Names => 0.0,
                Survival::Everything | Survival::Content => 1.0,
                Survival::UpToAMoment if *at < moment => 1.0,
                Survival::UpToAMoment if *at == moment => 0.5,
                Survival::UpToAMoment => 0.0,
                Survival::ByChance => [0.0, 0.5, 1.0][rng.usize(0..3)],
            };
            if share > 0.0 {
                apply(&mut durable, change, || rng.f64() < share);
            }
        }
        Self {
            seen: durable.clone(),
            durable,
            waiting: Vec::new(),
            names: 0,
            locked_by: None,
        }
    }
}

impl Directory {
    fn after_power_loss(&self, survival: Survival, moment: u64, rng: &mut Rng) -> Self {
        let mut durable = self.durable.clone();
        for (at, naming, node) in &self.waiting {
            let kept = match survival {
                Survival::Nothing | Survival::Content => false,
                Survival::Everything | Survival::Names => true,
                Survival::UpToAMoment => *at < moment,
                Survival::ByChance => rng.bool(),
            };
            if kept {
                rename_in(&mut durable, naming, *node);
            }
        }
        Self {
            seen: durable.clone(),
            durable,
            waiting: Vec::new(),
        }
    }
}

fn rename_in(names: &mut Names, naming: &Naming, node: NodeId) {
    match naming {
        Naming::Add { name, node } => {
            names.insert(name.clone(), *node);
        }
        Naming::Remove { name } => {
            if names.get(name) == Some(&node) {
                names.remove(name);
            }
        }
        Naming::Move { from, to } => {
            if names.get(from) == Some(&node) {
                names.remove(from);
            }
            names.insert(to.clone(), node);
        }
    }
}

/// Does `change` to a file, as far as `survives` says so, which is asked for every sector.
fn apply(content: &mut Vec<u8>, change: &Change, mut survives: impl FnMut() -> bool) {
    match change {
        Change::Length(len) => {
            if survives() {
                content.resize(*len, 0);
            }
        }
        Change::Write { offset, bytes } => {
            let mut at = *offset;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let here = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
                let (sector, behind) = rest.split_at(here);
                if survives() {
                    // What lies between and was not written is zero.
                    content.resize(content.len().max(at + here), 0);
                    content[at..at + here].copy_from_slice(sector);
                }
                (at, rest) = (at + here, behind);
            }
        }
    }
}
