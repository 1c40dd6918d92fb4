//! Backup jobs on a domain: whose one is, and ending one.
//!
//! Aborting is how a pull-mode job ends normally. It is asynchronous: the job is over when libvirt
//! shows none and has removed the scratch files; the socket stays and is removed here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roxmltree::Document;

use crate::error::{Error, Result};
use crate::host::DomainRef;
use crate::libvirt::{CallResult, DomainHandle, ErrorKind, Job, LibvirtError};
use crate::names::{Names, escape};

/// How long a job may take to end, and any one call while cleaning up.
const END_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What runs on the domain.
pub(crate) enum Found {
    Nothing,
    /// A backup into this repository. Whoever holds the domain's lock knows that it is dead.
    Ours(JobFiles),
}

/// The files of a backup job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct JobFiles {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) scratch: Vec<PathBuf>,
}

impl JobFiles {
    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.socket.iter().chain(&self.scratch)
    }
}

/// Looks at the job of the domain.
///
/// # Errors
/// [`Error::ForeignJob`] when it is not ours.
pub(crate) fn current(domain: &DomainRef, names: &Names) -> Result<Found> {
    let foreign = |job: String| Error::ForeignJob {
        domain: domain.name().to_owned(),
        job,
    };
    let job = domain.handle.job().map_err(Error::libvirt(format!(
        "ask domain {} for its job",
        domain.name()
    )))?;
    match job {
        Job::None => return Ok(Found::Nothing),
        Job::Other(_) => return Err(foreign(job.describe())),
        Job::Backup => {}
    }
    let xml = match domain.handle.backup_xml() {
        Err(error) if error.kind() == ErrorKind::NoBackup => return Ok(Found::Nothing),
        other => other.map_err(Error::libvirt("read the description of the running backup"))?,
    };
    let files = files_of(&xml).map_err(|why| Error::Xml {
        what: "the running backup".into(),
        why,
    })?;
    let is_ours = files.all().any(|path| {
        path.file_name()
            .is_some_and(|name| names.is_our_job_file(&name.to_string_lossy()))
    });
    if is_ours {
        return Ok(Found::Ours(files));
    }
    let by = files.socket.or_else(|| files.scratch.into_iter().next());
    Err(foreign(match by {
        Some(path) => format!(
            "another program's backup is running, it uses {}",
            path.display()
        ),
        None => "another program's backup is running".into(),
    }))
}

fn files_of(xml: &str) -> std::result::Result<JobFiles, String> {
    let document = Document::parse(xml).map_err(|error| error.to_string())?;
    let mut files = JobFiles::default();
    for node in document.descendants() {
        if node.has_tag_name("server") {
            files.socket = node.attribute("socket").map(PathBuf::from);
        } else if node.has_tag_name("scratch") {
            files
                .scratch
                .extend(node.attribute("file").map(PathBuf::from));
        }
    }
    Ok(files)
}

/// Ends the job that uses these files, if it still runs, and waits until nothing of it is left.
///
/// # Errors
/// When libvirt or QEMU do not answer in time; then the next run clears what is left.
pub(crate) fn end(domain: &DomainHandle, names: &Names, files: &JobFiles) -> CallResult<()> {
    let deadline = Instant::now() + END_LIMIT;
    let mut asked: Option<Instant> = None;
    loop {
        let socket = files.socket.clone();
        let names = names.clone();
        // Again after a while: a daemon that has just been restarted finds its jobs by and by.
        let ask = asked.is_none_or(|at| at.elapsed() > ASK_AGAIN);
        let runs = bounded(domain, move |domain| {
            let runs = is_this_job(domain, socket.as_deref(), &names)?;
            if runs && ask {
                domain.abort_job()?;
            }
            Ok(runs)
        });
        let runs = match runs {
            Err(error) if is_gone(&error) => false,
            other => other?,
        };
        if runs && ask {
            asked = Some(Instant::now());
        }
        let scratch_gone = files.scratch.iter().all(|path| !path.exists());
        if !runs && scratch_gone {
            break;
        }
        if Instant::now() > deadline {
            if runs {
                return Err(LibvirtError::no_answer(END_LIMIT));
            }
            break;
        }
        std::thread::sleep(POLL);
    }
    // The socket is never removed by libvirt, scratch files not when it missed the job's end.
    for path in files.all() {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Whether the job that runs now is the one with this socket.
fn is_this_job(domain: &DomainHandle, socket: Option<&Path>, names: &Names) -> CallResult<bool> {
    if domain.job()? != Job::Backup {
        return Ok(false);
    }
    let files = files_of(&domain.backup_xml()?).unwrap_or_default();
    Ok(match (&files.socket, socket) {
        // The name has a point's id in it. libvirt may write unusual directories in another way.
        (Some(found), Some(ours)) => found.file_name() == ours.file_name(),
        _ => files.all().any(|path| {
            path.file_name()
                .is_some_and(|name| names.is_our_job_file(&name.to_string_lossy()))
        }),
    })
}

/// Whether the error says that there is nothing (any more) to end.
fn is_gone(error: &LibvirtError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::OperationInvalid | ErrorKind::NoBackup | ErrorKind::NoDomain
    )
}

/// Makes a call that may hang when QEMU does, in a thread that is given up after a while.
pub(crate) fn bounded<T: Send + 'static>(
    domain: &DomainHandle,
    call: impl FnOnce(&DomainHandle) -> CallResult<T> + Send + 'static,
) -> CallResult<T> {
    let domain = domain.clone();
    let (answer, answered) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || answer.send(call(&domain)));
    answered
        .recv_timeout(END_LIMIT)
        .unwrap_or_else(|_| Err(LibvirtError::no_answer(END_LIMIT)))
}

/// One disk of a job to be.
pub(crate) struct JobDisk<'a> {
    pub(crate) target: &'a str,
    /// The checkpoint to read the changes since; none reads all.
    pub(crate) since: Option<&'a str>,
    pub(crate) scratch: &'a Path,
}

/// The name of the bitmap that an export offers, the same for every disk.
pub(crate) const EXPORT_BITMAP: &str = "virtkeep";

/// The description of a pull-mode job on these disks and not on the others.
pub(crate) fn xml(socket: &Path, disks: &[JobDisk<'_>], others: &[&str]) -> String {
    let mut list = String::new();
    for disk in disks {
        let target = escape(disk.target);
        let scratch = escape(&disk.scratch.to_string_lossy());
        let mode = match disk.since {
            Some(checkpoint) => format!(
                "backupmode='incremental' incremental='{}' exportbitmap='{EXPORT_BITMAP}'",
                escape(checkpoint)
            ),
            None => "backupmode='full'".into(),
        };
        list.push_str(&format!(
            "<disk name='{target}' backup='yes' type='file' {mode} exportname='{target}'>\
             <scratch file='{scratch}'/></disk>"
        ));
    }
    for target in others {
        list.push_str(&format!("<disk name='{}' backup='no'/>", escape(target)));
    }
    format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/>\
         <disks>{list}</disks></domainbackup>",
        escape(&socket.to_string_lossy())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_job_are_found_in_its_description() {
        let scratch = Path::new("/s/it's & <x>");
        let disks = [
            JobDisk {
                target: "vda",
                since: Some("cp"),
                scratch,
            },
            JobDisk {
                target: "vdb",
                since: None,
                scratch: Path::new("/s/b"),
            },
        ];
        let text = xml(Path::new("/run/x.sock"), &disks, &["sda"]);
        assert!(text.contains("name='vda' backup='yes' type='file' backupmode='incremental'"));
        assert!(text.contains("<disk name='sda' backup='no'/>"));
        let files = files_of(&text).unwrap();
        assert_eq!(files.socket, Some(PathBuf::from("/run/x.sock")));
        assert_eq!(files.scratch, [scratch, Path::new("/s/b")]);
    }
}
