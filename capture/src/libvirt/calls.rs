//! The calls that `virt` lacks, on the C interface: backup, checkpoints, jobs, freeze and thaw,
//! block pull, errors of disks, times of processors.
//!
//! All of the crate's unsafe code. Every pointer handed to libvirt outlives the call; what libvirt
//! allocates is freed here with the allocator it came from. (`Domain::job_stats` of `virt` is
//! never used: it frees libvirt's array with Rust's allocator.)

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::time::Duration;

use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt_sys as sys;

use super::{BlockJob, CallResult, DomainHandle, Job, LibvirtError};

unsafe extern "C" {
    /// The C library's: strings and arrays returned by libvirt belong to it.
    fn free(pointer: *mut c_void);
}

/// A checkpoint of a domain.
pub(crate) struct Checkpoint(sys::virDomainCheckpointPtr);

// SAFETY: libvirt objects may be used from any thread; the reference is owned by this value alone.
unsafe impl Send for Checkpoint {}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: the pointer is a valid reference that nobody else frees.
        unsafe { sys::virDomainCheckpointFree(self.0) };
    }
}

impl Checkpoint {
    fn owned(pointer: sys::virDomainCheckpointPtr) -> CallResult<Self> {
        if pointer.is_null() {
            return Err(last_error());
        }
        Ok(Self(pointer))
    }

    pub(crate) fn name(&self) -> CallResult<String> {
        // SAFETY: the checkpoint is valid.
        let name = unsafe { sys::virDomainCheckpointGetName(self.0) };
        if name.is_null() {
            return Err(last_error());
        }
        // SAFETY: a NUL-terminated string that lives as long as the checkpoint.
        Ok(unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned())
    }

    /// Its description without the domain. With sizes (running domains only), a disk whose bitmap
    /// is missing or broken has no `size` attribute.
    pub(crate) fn xml(&self, with_sizes: bool) -> CallResult<String> {
        let mut flags = sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN;
        if with_sizes {
            flags |= sys::VIR_DOMAIN_CHECKPOINT_XML_SIZE;
        }
        // SAFETY: the checkpoint is valid; the string returned is ours.
        owned_string(unsafe { sys::virDomainCheckpointGetXMLDesc(self.0, flags) })
    }

    /// Deletes it with its bitmaps; nothing else changes.
    pub(crate) fn delete(&self) -> CallResult<()> {
        // SAFETY: the checkpoint is valid.
        check(unsafe { sys::virDomainCheckpointDelete(self.0, 0) }).map(drop)
    }

    /// Makes libvirt forget it; bitmaps stay in the images.
    pub(crate) fn delete_metadata(&self) -> CallResult<()> {
        let flags = sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY;
        // SAFETY: the checkpoint is valid.
        check(unsafe { sys::virDomainCheckpointDelete(self.0, flags) }).map(drop)
    }
}

impl DomainHandle {
    /// Starts a backup job and, in the same instant, makes a checkpoint.
    pub(crate) fn backup_begin(&self, backup: &str, checkpoint: Option<&str>) -> CallResult<()> {
        let domain = self.now();
        let backup = c_string(backup)?;
        let checkpoint = checkpoint.map(c_string).transpose()?;
        let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |xml| xml.as_ptr());
        // SAFETY: the domain is valid; both strings are NUL-terminated or null.
        let status =
            unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, 0) };
        check(status).map(drop)
    }

    /// The description of the backup job that is running.
    pub(crate) fn backup_xml(&self) -> CallResult<String> {
        let domain = self.now();
        // SAFETY: the domain is valid; the string returned is ours.
        owned_string(unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) })
    }

    /// The job that is running.
    pub(crate) fn job(&self) -> CallResult<Job> {
        let domain = self.now();
        let mut kind: c_int = 0;
        let mut parameters: sys::virTypedParameterPtr = ptr::null_mut();
        let mut count: c_int = 0;
        // SAFETY: the domain is valid; the out-pointers live through the call.
        check(unsafe {
            sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters, &mut count, 0)
        })?;
        // SAFETY: libvirt filled in an array of `count` parameters (null when there are none),
        // which stays valid until it is freed below.
        let operation = unsafe { job_operation(parameters, count) };
        // SAFETY: the array and its length are as libvirt returned them; null is accepted.
        unsafe { sys::virTypedParamsFree(parameters, count) };
        Ok(match (kind as u32, operation) {
            (sys::VIR_DOMAIN_JOB_NONE, _) => Job::None,
            (_, Some(operation)) if operation == sys::VIR_DOMAIN_JOB_OPERATION_BACKUP as c_int => {
                Job::Backup
            }
            (_, operation) => Job::Other(operation.unwrap_or(0)),
        })
    }

    /// Asks the running job to end. A backup job ends a moment after this returns.
    pub(crate) fn abort_job(&self) -> CallResult<()> {
        let domain = self.now();
        // SAFETY: the domain is valid.
        check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) }).map(drop)
    }

    pub(crate) fn checkpoint(&self, name: &str) -> CallResult<Checkpoint> {
        let domain = self.now();
        let name = c_string(name)?;
        // SAFETY: the domain is valid, the string NUL-terminated; the reference returned is ours.
        Checkpoint::owned(unsafe {
            sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0)
        })
    }

    pub(crate) fn checkpoints(&self) -> CallResult<Vec<Checkpoint>> {
        let domain = self.now();
        let mut array: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
        // SAFETY: the domain is valid; the out-pointer lives through the call.
        let count =
            check(unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut array, 0) })?;
        let list = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: the array holds `count` references, each now owned by one `Checkpoint`.
            .map(|index| Checkpoint(unsafe { *array.add(index) }))
            .collect();
        // SAFETY: the array itself, not what it pointed to, came from the C library's allocator.
        unsafe { free(array.cast()) };
        Ok(list)
    }

    /// Tells libvirt of a checkpoint whose bitmaps exist already. Nothing is checked.
    pub(crate) fn redefine_checkpoint(&self, xml: &str) -> CallResult<Checkpoint> {
        let domain = self.now();
        let xml = c_string(xml)?;
        let flags = sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE;
        // SAFETY: the domain is valid, the string NUL-terminated; the reference returned is ours.
        Checkpoint::owned(unsafe {
            sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), flags)
        })
    }

    /// Freezes all file systems of the guest; how many.
    pub(crate) fn freeze(&self) -> CallResult<u32> {
        let domain = self.now();
        // SAFETY: the domain is valid; no list means all file systems.
        let count =
            check(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Thaws all file systems of the guest; how many.
    pub(crate) fn thaw(&self) -> CallResult<u32> {
        let domain = self.now();
        // SAFETY: the domain is valid; no list means all file systems.
        let count = check(unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// How many seconds the daemon waits for an answer of this domain's guest agent; −2: forever.
    pub(crate) fn set_agent_timeout(&self, seconds: i32) -> CallResult<()> {
        let domain = self.now();
        // SAFETY: the domain is valid.
        check(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) })
            .map(drop)
    }
}

/// Starts moving the content of all backing images of a disk into its top image, while the guest
/// works. Returns at once; [`block_job`] tells how far it has come.
///
/// # Errors
/// When libvirt refuses, for example since the disk has a job already.
pub fn pull_disk(domain: &Domain, target: &str) -> CallResult<()> {
    let target = c_string(target)?;
    // SAFETY: the domain is valid, the string NUL-terminated; 0 means as fast as possible.
    check(unsafe { sys::virDomainBlockPull(domain.as_ptr(), target.as_ptr(), 0, 0) }).map(drop)
}

/// How far the block job of a disk has come; none when the disk has no job. A job that has ended,
/// however it did, is gone.
///
/// # Errors
/// When libvirt cannot be asked, for example since the domain is not running.
pub fn block_job(domain: &Domain, target: &str) -> CallResult<Option<BlockJob>> {
    let target = c_string(target)?;
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: the domain is valid, the string NUL-terminated, the out-pointer lives on.
    let found = check(unsafe {
        sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &mut info, 0)
    })?;
    Ok((found > 0).then_some(BlockJob {
        done: info.cur,
        total: info.end,
    }))
}

/// Asks the block job of a disk to end without completing. Returns at once: the job may go on for a
/// moment. What it has moved stays where it is.
///
/// # Errors
/// When libvirt refuses, for example since the disk has no job.
pub fn stop_block_job(domain: &Domain, target: &str) -> CallResult<()> {
    let target = c_string(target)?;
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC;
    // SAFETY: the domain is valid, the string NUL-terminated.
    check(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), target.as_ptr(), flags) }).map(drop)
}

/// The disks on which a write of the guest failed because no space was left, and which wait for some:
/// their targets.
///
/// # Errors
/// When libvirt cannot be asked, for example since the domain is not running.
pub fn disks_without_space(domain: &Domain) -> CallResult<Vec<String>> {
    // SAFETY: the domain is valid; without an array the call tells how long one must be.
    let count =
        check(unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    let none = sys::virDomainDiskError {
        disk: ptr::null_mut(),
        error: 0,
    };
    let mut errors = vec![none; usize::try_from(count).unwrap_or(0)];
    let len = c_uint::try_from(errors.len()).unwrap_or(0);
    // SAFETY: the domain is valid, the array has as many elements as said.
    let found = check(unsafe {
        sys::virDomainGetDiskErrors(domain.as_ptr(), errors.as_mut_ptr(), len, 0)
    })?;
    errors.truncate(usize::try_from(found).unwrap_or(0));
    let mut targets = Vec::new();
    for error in errors {
        let target = owned_string(error.disk)?;
        if error.error == sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE as c_int {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// How long each processor of a running guest has computed since it was started, and how long it was kept from
/// computing by others on the host (0 where the kernel does not count that). None of a processor that libvirt cannot
/// tell from others.
///
/// # Errors
/// When libvirt cannot be asked.
pub fn processor_times(domain: &Domain) -> CallResult<Vec<(Duration, Duration)>> {
    // SAFETY: the domain outlives the call.
    let mut domains = [unsafe { domain.as_ptr() }, ptr::null_mut()];
    let mut records: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
    let which = sys::VIR_DOMAIN_STATS_VCPU;
    // SAFETY: a list of valid domains that ends with null; the out-pointer lives through the call.
    let count =
        check(unsafe { sys::virDomainListGetStats(domains.as_mut_ptr(), which, &mut records, 0) })?;
    let times = match count {
        0 => Vec::new(),
        // SAFETY: the list has a valid record, which stays so until it is freed below, with as many parameters as
        // it says.
        _ => unsafe { processors_in((**records).params, (**records).nparams) },
    };
    // SAFETY: ours to free, and not used any more; an empty list is accepted.
    unsafe { sys::virDomainStatsRecordListFree(records) };
    Ok(times)
}

/// # Safety
/// `parameters` points to `count` valid parameters, or is null and `count` zero.
unsafe fn processors_in(
    parameters: sys::virTypedParameterPtr,
    count: c_int,
) -> Vec<(Duration, Duration)> {
    let nanos = |name: String| {
        let name = CString::new(name).ok()?;
        let mut value = 0;
        // SAFETY: as the caller promises; the name is NUL-terminated, the out-pointer lives on.
        let found =
            unsafe { sys::virTypedParamsGetULLong(parameters, count, name.as_ptr(), &mut value) };
        (found == 1).then(|| Duration::from_nanos(value))
    };
    let mut most: c_uint = 0;
    let name = c"vcpu.maximum".as_ptr();
    // SAFETY: as the caller promises; the name is NUL-terminated, the out-pointer lives on.
    unsafe { sys::virTypedParamsGetUInt(parameters, count, name, &mut most) };
    let times = (0..most).filter_map(|number| {
        let ran = nanos(format!("vcpu.{number}.time"))?;
        let waited = nanos(format!("vcpu.{number}.delay"));
        Some((ran, waited.unwrap_or_default()))
    });
    times.collect()
}

/// # Safety
/// `parameters` points to `count` valid parameters, or is null and `count` zero.
unsafe fn job_operation(parameters: sys::virTypedParameterPtr, count: c_int) -> Option<c_int> {
    let name = c"operation".as_ptr();
    let mut value: c_int = 0;
    // SAFETY: as the caller promises; the name is NUL-terminated, the out-pointer lives on.
    let found = unsafe { sys::virTypedParamsGetInt(parameters, count, name, &mut value) };
    (found == 1).then_some(value)
}

fn c_string(text: &str) -> CallResult<CString> {
    CString::new(text).map_err(|error| LibvirtError::invalid(error.to_string()))
}

fn owned_string(pointer: *mut c_char) -> CallResult<String> {
    if pointer.is_null() {
        return Err(last_error());
    }
    // SAFETY: a NUL-terminated string that libvirt made for us.
    let text = unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: ours to free, from the C library's allocator, and not used any more.
    unsafe { free(pointer.cast()) };
    Ok(text)
}

fn check(status: c_int) -> CallResult<c_int> {
    if status < 0 {
        return Err(last_error());
    }
    Ok(status)
}

fn last_error() -> LibvirtError {
    VirtError::last_error().into()
}
