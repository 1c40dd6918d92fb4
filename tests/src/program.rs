//! The program, as users run it, on one repository.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;

/// The program, with a repository to use it on.
#[derive(Clone, Debug)]
pub struct Program {
    repo: PathBuf,
}

impl Program {
    /// With a new repository; `words` go to `init`.
    #[track_caller]
    pub fn init(repo: &Path, words: &[&str]) -> Self {
        let program = Self {
            repo: repo.to_owned(),
        };
        let mut all = vec!["init"];
        all.extend(words);
        program.ok(&all);
        program
    }

    /// Where its repository is.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// A command, ready to be run.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(executable());
        command
            .arg("--repository")
            .arg(&self.repo)
            .args(words)
            .env_remove("VIRTKEEP_REPO")
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end, whatever that is.
    pub fn run(&self, words: &[&str]) -> Ran {
        self.start(words).wait()
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Ran {
        let ran = self.run(words);
        assert!(ran.code() == Some(0), "virtkeep {words:?}: {ran:?}");
        ran
    }

    /// Backs one domain up, which must succeed; the line of JSON about its point.
    #[track_caller]
    pub fn backup(&self, domain: &str, words: &[&str]) -> Value {
        let mut all = vec!["--json", "backup", domain];
        all.extend(words);
        self.ok(&all).line("point")
    }

    /// Starts a command.
    pub fn start(&self, words: &[&str]) -> Running {
        let mut child = self.command(words).spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Running {
            child,
            errors,
            stderr: String::new(),
        }
    }

    /// The ids of all points, the oldest first.
    #[track_caller]
    pub fn points(&self) -> Vec<String> {
        let listed = self.ok(&["--json", "list"]).json();
        let id = |line: &Value| line["point"].as_str().unwrap().to_owned();
        listed.iter().map(id).collect()
    }

    /// The first eight digits of the repository's id, which the names of checkpoints and files of
    /// its backups begin with.
    pub fn short_id(&self) -> String {
        let config = std::fs::read_to_string(self.repo.join("config.toml")).unwrap();
        let id = config
            .lines()
            .find_map(|line| line.strip_prefix("repository_id = \""));
        id.unwrap()[..8].to_owned()
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    errors: BufReader<ChildStderr>,
    stderr: String,
}

impl Running {
    /// Waits for a line on standard error that contains this text; whether it came.
    pub fn wait_for(&mut self, text: &str) -> bool {
        loop {
            let from = self.stderr.len();
            if self.errors.read_line(&mut self.stderr).unwrap() == 0 {
                return false;
            }
            if self.stderr[from..].contains(text) {
                return true;
            }
        }
    }

    /// Sends it a signal. Nothing happens where it has ended already.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        // It is not waited for yet, so the number is still its own.
        kill_process(pid, signal).unwrap();
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, which must be a success; how many bytes it has read, of whatever files.
    #[track_caller]
    pub fn bytes_read(self) -> u64 {
        let pid = Pid::from_child(&self.child);
        // It stays as a zombie, whose account can still be read.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), options).unwrap();
        let account = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_pid())).unwrap();
        let ran = self.wait();
        assert_eq!(ran.code(), Some(0), "{ran:?}");
        let read = account
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse().unwrap()
    }

    /// Waits for its end. What it prints meanwhile is little enough for the pipe.
    pub fn wait(mut self) -> Ran {
        let mut stdout = Vec::new();
        let mut out = self.child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            out.read_to_end(&mut stdout).unwrap();
            stdout
        });
        let mut rest = Vec::new();
        self.errors.read_to_end(&mut rest).unwrap();
        self.stderr.push_str(&String::from_utf8_lossy(&rest));
        let stdout = reader.join().unwrap();
        Ran {
            status: self.child.wait().unwrap(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: self.stderr,
        }
    }
}

/// What a command gave.
pub struct Ran {
    status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl std::fmt::Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "{status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its exit code; none if a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The lines of JSON on standard output.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        let parsed: Result<_, _> = lines.map(serde_json::from_str).collect();
        parsed.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The only line of JSON of this type.
    #[track_caller]
    pub fn line(&self, kind: &str) -> Value {
        let lines = self.json().into_iter();
        let lines: Vec<Value> = lines.filter(|line| line["type"] == kind).collect();
        let [line] = &lines[..] else {
            panic!("not one line of type {kind}: {self:?}")
        };
        line.clone()
    }

    /// Fails unless the command failed with this code and said this.
    #[track_caller]
    pub fn refused(&self, code: i32, text: &str) {
        let said = self.stderr.contains(text);
        assert!(self.code() == Some(code) && said, "{text}: {self:?}");
    }
}

/// The program. A test may only ask Cargo for executables of its own package, so this one is built
/// here, once, in the profile of the tests; where they have been built all is there and this takes
/// no time. `VIRTKEEP_PROGRAM` names another one, such as a release build.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("VIRTKEEP_PROGRAM") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--quiet",
            "--offline",
            "--package",
            "virtkeep",
            "--bin",
            "virtkeep",
        ])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "the program could not be built");
    let messages = String::from_utf8(output.stdout).unwrap();
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(message["executable"].as_str()?.into()))
        .expect("Cargo names the executable it built")
}
