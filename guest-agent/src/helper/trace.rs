//! libcontainer logs the reason of a failure and returns less; its error lines go to the status pipe.

use std::fmt::{Debug, Write};

use tracing_core::span::{Attributes, Current, Id, Record};
use tracing_core::{
    Dispatch, Event, Field, Level, LevelFilter, Metadata, Subscriber, dispatcher, field::Visit,
};

use crate::oci::status::StatusWriter;

/// From here on the library's errors are written to the pipe, also by processes that it forks.
pub fn to_status(status: StatusWriter) {
    // A second call would fail; there is one request per helper.
    let _ = dispatcher::set_global_default(Dispatch::new(ErrorLines(status)));
}

struct ErrorLines(StatusWriter);

impl Subscriber for ErrorLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if line.fields.is_empty() {
            self.0.trace(&line.message);
        } else {
            self.0.trace(&format!("{}: {}", line.message, line.fields));
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn current_span(&self) -> Current {
        Current::none()
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let gap = if self.fields.is_empty() { "" } else { " " };
            let _ = write!(self.fields, "{gap}{}={value:?}", field.name());
        }
    }
}
