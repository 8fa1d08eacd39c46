//! A panic is a bug of ours: it ends as an error like any other, with one line that says what was running.

use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Mutex;

/// The last panic of any thread, with its place in the source.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// From now on a panic says nothing by itself; its message and backtrace are printed for those who set RUST_BACKTRACE.
pub fn keep_quiet() {
    let loud = take_hook();
    set_hook(Box::new(move |panic| {
        let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("without a message").split_whitespace().collect::<Vec<_>>().join(" ");
        let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // A thread that waits for one that panicked says less than that one did.
        if !(last.is_some() && text.contains("Any {")) {
            *last = Some(format!("{text}{place}"));
        }
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            loud(panic);
        }
    }));
}

/// Does `work`; a panic in it is an internal error that names `doing`.
pub fn caught<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().unwrap_or_default();
        Err(Error::internal(format_args!("a bug in nightmarket while running `{doing}`: {last}"))
            .action("report this line with the log; what is published stays"))
    })
}
