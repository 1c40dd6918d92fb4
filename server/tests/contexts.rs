//! Metadata contexts: what a client selects, lists and is told.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{MIB, Served, contexts, disk, info};
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::option_reply::{OptionError, ReplyBody};
use nbd_server::wire::reply::{ErrorCode, ReplyHead};
use nbd_server::wire::request::{Command, CommandFlags};
use nbd_server::{Context, Export, ExportError, ExportMap, Extents, Limits};

#[test]
fn block_status_answers_every_selected_context_and_one_extent_where_asked() {
    let served = Served::one(disk());
    let mut client = served.client();
    client.accepted(&ClientOption::StructuredReply);
    let wanted = contexts("disk", &["base:allocation", "x-none:such", "base:"]);
    let selected = client.accepted(&ClientOption::SetMetaContext(wanted));
    assert_eq!(selected.len(), 1);
    client.go("disk");
    client.send(Command::BlockStatus, 1, MIB - 512, 4096);
    let (head, _, extents) = client.reply();
    assert!(matches!(
        head,
        ReplyHead::BlockStatus {
            done: true,
            extents: 2,
            ..
        }
    ));
    assert_eq!(extents, [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 3]);
    client.send_with(
        Command::BlockStatus,
        CommandFlags::REQ_ONE,
        1,
        MIB - 512,
        4096,
    );
    assert_eq!(client.reply().2, [0, 0, 2, 0, 0, 0, 0, 0]);
}

#[test]
fn contexts_of_another_export_do_not_carry_over() {
    let exports = ExportMap::new()
        .with("disk", Arc::new(disk()))
        .with("other", Arc::new(disk()));
    let served = Served::start(exports, Limits::default());
    let mut client = served.client();
    client.accepted(&ClientOption::StructuredReply);
    let wanted = contexts("other", &["base:allocation"]);
    client.accepted(&ClientOption::SetMetaContext(wanted));
    client.go("disk");
    client.send(Command::BlockStatus, 1, 0, 4096);
    let (head, ..) = client.reply();
    assert!(matches!(
        head,
        ReplyHead::Error {
            code: ErrorCode::Invalid,
            ..
        }
    ));
}

#[test]
fn what_was_selected_outlives_questions_about_other_exports() {
    let exports = ExportMap::new()
        .with("disk", Arc::new(Numbered))
        .with("other", Arc::new(disk()));
    let served = Served::start(exports, Limits::default());
    for question in [
        ClientOption::Info(info("other")),
        ClientOption::ListMetaContext(contexts("other", &[])),
    ] {
        let mut client = served.client();
        client.accepted(&ClientOption::StructuredReply);
        let wanted = contexts("disk", &["x-test:7"]);
        client.accepted(&ClientOption::SetMetaContext(wanted));
        client.accepted(&question);
        client.go("disk");
        client.send(Command::BlockStatus, 1, 0, 512);
        let (head, _, extents) = client.reply();
        assert!(matches!(head, ReplyHead::BlockStatus { context: 0, .. }));
        assert_eq!(extents[7], 7);
    }
}

/// Extents of one flag each, in as many contexts as are asked for: `x-test:` and a number.
struct Numbered;

struct Number(u32);

impl Export for Numbered {
    fn size(&self) -> u64 {
        MIB
    }
    fn read(&self, _: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        buffer.fill(0);
        Ok(())
    }
    fn contexts(&self) -> Vec<String> {
        vec!["x-test:1".to_owned(), "x-other:1".to_owned()]
    }
    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        let number = name.strip_prefix("x-test:")?.parse().ok()?;
        Some(Box::new(Number(number)))
    }
}

impl Context for Number {
    fn status(&self, _: u64, length: u64, extents: &mut Extents) -> Result<(), ExportError> {
        extents.push(length, self.0);
        Ok(())
    }
}

#[test]
fn contexts_are_listed_by_namespace_and_name_and_several_are_answered_together() {
    let served = Served::one(Numbered);
    let mut client = served.client();
    client.accepted(&ClientOption::StructuredReply);
    let mut listed = |queries: &[&str]| -> Vec<String> {
        let option = ClientOption::ListMetaContext(contexts("disk", queries));
        let name = |body| match body {
            ReplyBody::MetaContext { name, .. } => name,
            other => panic!("{other:?}"),
        };
        client.accepted(&option).into_iter().map(name).collect()
    };
    assert_eq!(listed(&[]), ["base:allocation", "x-test:1", "x-other:1"]);
    assert_eq!(listed(&["x-test:"]), ["x-test:1"]);
    assert_eq!(
        listed(&["base:", "x-other:1"]),
        ["base:allocation", "x-other:1"]
    );
    // One that is not in the list, but exists.
    assert_eq!(listed(&["x-test:4711"]), ["x-test:4711"]);
    assert!(listed(&["x-none:", "no colon", "base:else"]).is_empty());

    let queries = [
        "x-test:7",
        "base:allocation",
        "x-none:1",
        "x-test:9",
        "x-test:7",
    ];
    let selected = client.accepted(&ClientOption::SetMetaContext(contexts("disk", &queries)));
    assert_eq!(selected.len(), 3);
    client.go("disk");
    client.send(Command::BlockStatus, 1, 512, 1024);
    for (number, flag) in [(0, 7), (1, 0), (2, 9)] {
        let (head, _, extents) = client.reply();
        let expected = ReplyHead::BlockStatus {
            context: number,
            extents: 1,
            done: number == 2,
        };
        assert_eq!(head, expected);
        assert_eq!(extents, [0, 0, 4, 0, 0, 0, 0, flag]);
    }
}

/// Counts how often a context of its own is opened; each exists.
struct Costly(Arc<AtomicUsize>);

impl Export for Costly {
    fn size(&self) -> u64 {
        MIB
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        Ok(())
    }
    fn has_context(&self, _: &str) -> bool {
        true
    }
    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Numbered.context(name)
    }
}

#[test]
fn contexts_are_counted_before_they_are_opened_and_not_opened_to_be_listed() {
    let opened = Arc::new(AtomicUsize::new(0));
    let served = Served::one(Costly(opened.clone()));
    let mut client = served.client();
    client.accepted(&ClientOption::StructuredReply);
    let names: Vec<String> = (0..17).map(|number| format!("x-test:{number}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &name[..]).collect();
    for option in [
        ClientOption::SetMetaContext(contexts("disk", &names)),
        ClientOption::ListMetaContext(contexts("disk", &names)),
    ] {
        let replies = client.option(&option);
        let [ReplyBody::Error { code, .. }] = replies[..] else {
            panic!("{option:?}: {replies:?}");
        };
        assert_eq!(code, OptionError::TooBig, "{option:?}");
    }
    let listed = client.accepted(&ClientOption::ListMetaContext(contexts(
        "disk",
        &names[1..],
    )));
    assert_eq!(listed.len(), 16);
    assert_eq!(opened.load(Ordering::Relaxed), 0);
    // Asked for again and again, one is one.
    let mut again = names[1..].repeat(60);
    again.push("base:allocation");
    let refused = client.option(&ClientOption::SetMetaContext(contexts("disk", &again)));
    assert_eq!(refused.len(), 1, "{refused:?}");
    again.pop();
    let selected = client.accepted(&ClientOption::SetMetaContext(contexts("disk", &again)));
    assert_eq!(selected.len(), 16);
    assert_eq!(opened.load(Ordering::Relaxed), 16);
}
