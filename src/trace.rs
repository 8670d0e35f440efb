//! The trace that one command is: a W3C trace context (<https://www.w3.org/TR/trace-context/>), sent with every call so
//! that what servers log of it can be found again. `-v` prints the id beside an error.

use std::fmt;

use tonic::{Request, metadata::MetadataValue};

/// The metadata key, and the header of the recommendation.
const TRACEPARENT: &str = "traceparent";
/// Version 00; flag 01: sampled. A person typed the command and will ask about this very one.
const VERSION: &str = "00";
const SAMPLED: &str = "01";

/// One command's trace. All its calls are children of one span: the command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trace {
    trace: u128,
    span: u64,
}

impl Trace {
    /// From random bits. All zeroes would be no ids, by the recommendation.
    pub(crate) fn new(trace: u128, span: u64) -> Self {
        Self { trace: trace.max(1), span: span.max(1) }
    }

    /// A request that carries it.
    pub(crate) fn carry<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = format!("{VERSION}-{self}-{:016x}-{SAMPLED}", self.span);
        let value = MetadataValue::try_from(value).expect("hexadecimal digits and dashes are ASCII");
        request.metadata_mut().insert(TRACEPARENT, value);
        request
    }
}

/// The trace id, as trace stores are asked for it.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_as_the_recommendation_says() {
        let request = Trace::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7).carry(());
        let sent = request.metadata().get(TRACEPARENT).expect("it is there").to_str().expect("it is ASCII");
        assert_eq!(sent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    }

    #[test]
    fn there_is_no_zero_id() {
        assert_eq!(Trace::new(0, 0), Trace::new(1, 1));
    }
}
