//! What the kernel asks, answered from the repository.
//!
//! Looking around costs no reading: names, sizes and times come from the records of points. Only the
//! directory of a single point looks into its disks, for their partition tables. A disk is open, and
//! held by a reader lease, as long as one of its files is. Several threads answer at the same time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, Request,
};
use nbd_server::Export as _;
use virtkeep_repo::{Point, PointId, RootId, UnixMillis};

use super::access::Access;
use super::cursor::DiskCursor;
use super::entries::{Entries, Entry};
use super::inodes::{File, Inodes, Node};
use super::opened::{OpenFiles, Opened};
use super::partitions::{self, Partition};
use super::session::Event;
use super::tree::Tree;
use crate::output::shown;
use crate::serve::catalog::Catalog;
use crate::serve::disk::OpenDisk;

/// For how long the kernel and we go by what was seen.
const FRESH: Duration = Duration::from_millis(500);

/// Requests that the kernel may send ahead of programs, such as reading ahead.
const BACKGROUND_MAX: u16 = 64;

/// Partition tables that are kept, one per state of a disk.
const TABLES_MAX: usize = 10_000;

/// The name of the link to the newest point.
const LATEST: &str = "latest";

/// All points of a repository as files.
pub(crate) struct PointFiles {
    catalog: Catalog,
    tree: Mutex<Option<(Instant, Arc<Tree>)>>,
    /// Whether the points could not be listed the last time.
    unlisted: AtomicBool,
    tables: Mutex<HashMap<RootId, Arc<[Partition]>>>,
    inodes: Mutex<Inodes>,
    open: Arc<OpenFiles>,
    ended: Sender<Event>,
    access: Access,
}

impl PointFiles {
    /// The files of all points in `catalog`; for everybody, or only for the user of this process.
    /// `ended` is told when the kernel asks nothing any more.
    pub(crate) fn new(catalog: Catalog, for_all: bool, ended: Sender<Event>) -> Self {
        let access = Access::new(for_all);
        Self {
            catalog,
            tree: Mutex::default(),
            unlisted: AtomicBool::new(false),
            tables: Mutex::default(),
            inodes: Mutex::new(Inodes::new(access.directory(UNIX_EPOCH))),
            open: Arc::default(),
            ended,
            access,
        }
    }

    /// What is open, at any time.
    pub(crate) fn open_files(&self) -> Arc<OpenFiles> {
        Arc::clone(&self.open)
    }

    /// The names, as they are now or were a moment ago.
    fn tree(&self) -> Result<Arc<Tree>, Errno> {
        let mut tree = lock(&self.tree);
        if let Some((seen, tree)) = &*tree
            && seen.elapsed() < FRESH
        {
            return Ok(Arc::clone(tree));
        }
        let points = self.catalog.points().map_err(|error| {
            // Once for as long as it lasts: everything in the mount is asked for again and again.
            if !self.unlisted.swap(true, Ordering::Relaxed) {
                let error = anyhow::Error::new(error);
                self.catalog
                    .note(&format!("cannot list the points: {error:#}"));
            }
            Errno::EIO
        })?;
        self.unlisted.store(false, Ordering::Relaxed);
        let current = match tree.take() {
            Some((_, tree)) if tree.made_of(&points) => tree,
            _ => Arc::new(Tree::new(points, self.catalog.zone())),
        };
        *tree = Some((Instant::now(), Arc::clone(&current)));
        Ok(current)
    }

    fn node(&self, number: INodeNo) -> Result<(Node, FileAttr), Errno> {
        let inodes = lock(&self.inodes);
        let (node, attr) = inodes.get(number).ok_or(Errno::ENOENT)?;
        Ok((node.clone(), *attr))
    }

    /// What has this name in a directory, and its attributes.
    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<(Node, FileAttr), Errno> {
        // All our names are text.
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let tree = self.tree()?;
        match self.node(parent)?.0 {
            Node::Root => {
                let domain = tree.domain_named(name).ok_or(Errno::ENOENT)?;
                let newest = tree.points_of(domain).next_back().ok_or(Errno::ENOENT)?.1;
                let attr = self.access.directory(time(newest.time));
                Ok((Node::Domain(domain.uuid), attr))
            }
            Node::Domain(uuid) => {
                let domain = tree.domain(uuid).ok_or(Errno::ENOENT)?;
                if name == LATEST {
                    let (target, newest) =
                        tree.points_of(domain).next_back().ok_or(Errno::ENOENT)?;
                    let attr = self.access.link(target, time(newest.time));
                    return Ok((Node::Latest(uuid), attr));
                }
                let point = tree.point_named(domain, name).ok_or(Errno::ENOENT)?;
                let attr = self.access.directory(time(point.time));
                Ok((Node::Point(point.id), attr))
            }
            Node::Point(id) => {
                let point = tree.point(id).ok_or(Errno::ENOENT)?;
                let mut entries = Entries::of(point);
                if entries.named(name).is_none() {
                    self.add_partitions(point, &mut entries);
                }
                let entry = entries.named(name).ok_or(Errno::ENOENT)?;
                let attr = self.access.file(entry.len, time(point.time));
                Ok((Node::File(point.id, entry.file.clone()), attr))
            }
            Node::Latest(_) | Node::File(..) => Err(Errno::ENOTDIR),
        }
    }

    /// The names in a directory.
    fn list(&self, number: INodeNo) -> Result<Vec<(INodeNo, FileType, String)>, Errno> {
        let tree = self.tree()?;
        let directory = self.node(number)?.0;
        // A directory need not name its parent's number.
        let mut list = vec![
            (number, FileType::Directory, ".".to_owned()),
            (number, FileType::Directory, "..".to_owned()),
        ];
        let inodes = || lock(&self.inodes);
        let mut add = |inodes: &Inodes, node: Node, kind: FileType, name: &str| {
            list.push((inodes.number(&node), kind, name.to_owned()));
        };
        match directory {
            Node::Root => {
                let inodes = inodes();
                for domain in tree.domains() {
                    let node = Node::Domain(domain.uuid);
                    add(&inodes, node, FileType::Directory, &domain.name);
                }
            }
            Node::Domain(uuid) => {
                let domain = tree.domain(uuid).ok_or(Errno::ENOENT)?;
                let inodes = inodes();
                for (name, point) in tree.points_of(domain) {
                    add(&inodes, Node::Point(point.id), FileType::Directory, name);
                }
                add(&inodes, Node::Latest(uuid), FileType::Symlink, LATEST);
            }
            Node::Point(id) => {
                let point = tree.point(id).ok_or(Errno::ENOENT)?;
                let mut entries = Entries::of(point);
                self.add_partitions(point, &mut entries);
                let inodes = inodes();
                for Entry { name, file, .. } in entries.all() {
                    let node = Node::File(id, file.clone());
                    add(&inodes, node, FileType::RegularFile, name);
                }
            }
            Node::Latest(_) | Node::File(..) => return Err(Errno::ENOTDIR),
        }
        Ok(list)
    }

    /// Looks into all disks of a point.
    fn add_partitions(&self, point: &Point, entries: &mut Entries) {
        for disk in &point.disks {
            entries.add_partitions(&disk.target, &self.partitions(point, &disk.target));
        }
    }

    /// The partitions of a disk. One that cannot be read is asked again later.
    fn partitions(&self, point: &Point, target: &str) -> Arc<[Partition]> {
        let Some(disk) = point.disks.iter().find(|disk| disk.target == target) else {
            return Arc::default();
        };
        if let Some(known) = lock(&self.tables).get(&disk.root) {
            return Arc::clone(known);
        }
        let Ok(open) = self.open_disk(point, target) else {
            return Arc::default();
        };
        let table = partitions::read(&mut DiskCursor::new(&open), open.size());
        let found: Arc<[Partition]> = table.partitions.into();
        if table.unread.is_none() {
            let mut tables = lock(&self.tables);
            if tables.len() >= TABLES_MAX {
                tables.clear();
            }
            tables.insert(disk.root, Arc::clone(&found));
        }
        found
    }

    fn open_disk(&self, point: &Point, target: &str) -> Result<Arc<OpenDisk>, Errno> {
        let disk = point.disks.iter().find(|disk| disk.target == target);
        let disk = disk.ok_or(Errno::ENOENT)?;
        self.catalog.open_disk(point, disk).map_err(|error| {
            self.complain(point, target, &error);
            Errno::EIO
        })
    }

    fn complain(&self, point: &Point, what: &str, error: &dyn std::fmt::Display) {
        let (domain, what) = (shown(&point.domain.name), shown(what));
        self.catalog.note(&format!(
            "{domain}@{}: cannot open {what}: {error}",
            point.id
        ));
    }

    fn open_file(&self, id: PointId, file: &File) -> Result<Opened, Errno> {
        let tree = self.tree()?;
        let point = tree.point(id).ok_or(Errno::ENOENT)?;
        match file {
            File::Stored(place) => {
                let stored = point.files.get(*place).ok_or(Errno::ENOENT)?;
                let content = self.catalog.read_file(point, stored).map_err(|error| {
                    self.complain(point, &stored.name, &error);
                    Errno::EIO
                })?;
                Ok(Opened::Content(content))
            }
            File::Disk(target) => {
                let disk = self.open_disk(point, target)?;
                let (start, len) = (0, disk.size());
                Ok(Opened::Disk { disk, start, len })
            }
            File::Partition { target, start, len } => Ok(Opened::Disk {
                disk: self.open_disk(point, target)?,
                start: *start,
                len: *len,
            }),
        }
    }
}

impl Filesystem for PointFiles {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn destroy(&mut self) {
        self.open.clear();
        // Nobody may be waiting for it any more.
        let _ = self.ended.send(Event::Ended);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok((node, attr)) => {
                let attr = lock(&self.inodes).tell(node, attr);
                reply.entry(&FRESH, &attr, Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, times: u64) {
        lock(&self.inodes).give_back(number, times);
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        // Also of what is forgotten: it may be open.
        match self.node(number) {
            Ok((_, attr)) => reply.attr(&FRESH, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        let target = || {
            let (Node::Latest(uuid), _) = self.node(number)? else {
                return Err(Errno::EINVAL);
            };
            let tree = self.tree()?;
            let domain = tree.domain(uuid).ok_or(Errno::ENOENT)?;
            let newest = tree.points_of(domain).next_back();
            newest.map(|(name, _)| name.to_owned()).ok_or(Errno::ENOENT)
        };
        match target() {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = || match self.node(number)?.0 {
            Node::File(id, file) => self.open_file(id, &file),
            _ => Err(Errno::EISDIR),
        };
        match opened() {
            // The content behind a number never changes.
            Ok(opened) => reply.opened(self.open.insert(opened), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self
            .open
            .get(handle)
            .and_then(|opened| opened.read(offset, size as usize));
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // Linux, <linux/fs.h>; all other kinds the kernel does by itself.
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let found = self.open.get(handle).and_then(|opened| {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            match whence {
                SEEK_DATA => opened.seek(offset, true),
                SEEK_HOLE => opened.seek(offset, false),
                _ => Err(Errno::EINVAL),
            }
        });
        match found.map(i64::try_from) {
            Ok(Ok(at)) => reply.offset(at),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.open.remove(handle);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list(number) {
            Ok(list) => reply.opened(
                self.open.insert(Opened::Directory(list)),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let opened = match self.open.get(handle) {
            Ok(opened) => opened,
            Err(error) => return reply.error(error),
        };
        let Opened::Directory(list) = &*opened else {
            return reply.error(Errno::ENOTDIR);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((number, kind, name), next) in list.iter().zip(1..).skip(from) {
            if reply.add(*number, next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.open.remove(handle);
        reply.ok();
    }
}

fn time(time: UnixMillis) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(time.0))
        .unwrap_or(UNIX_EPOCH)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
