//! The map service on the wire: as tonic would generate it, but with replies that were encoded before.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes};
use pflex_proto::pb::{WatchReply, WatchRequest};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, StdError, http},
    server::{Grpc, NamedService, ServerStreamingService},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::api::Api;

/// Replies on their way to one client; HTTP/2 flow control holds the rest back. Few: what waits in the ring is sent
/// together, what waits here is not.
pub(super) const IN_FLIGHT: usize = 4;
/// A request has three numbers.
const REQUEST_BYTES: usize = 4 << 10;
const WATCH: &str = "/pflex.v1.Map/Watch";

/// One message: parts that were encoded before, behind one another, each shared by all who get it.
#[derive(Debug)]
pub(super) struct Reply(pub(super) Vec<Bytes>);

impl From<Bytes> for Reply {
    fn from(whole: Bytes) -> Self {
        Self(vec![whole])
    }
}

/// A stream of replies, and why it ended, told after the last of them even if nobody read for long.
pub(super) struct Replies {
    queue: mpsc::Receiver<Reply>,
    end: Arc<Mutex<Option<Status>>>,
}

/// The other side.
pub(super) struct Sender {
    pub(super) queue: mpsc::Sender<Reply>,
    end: Arc<Mutex<Option<Status>>>,
}

pub(super) fn channel() -> (Sender, Replies) {
    let (sender, queue) = mpsc::channel(IN_FLIGHT);
    let end = Arc::default();
    (Sender { queue: sender, end: Arc::clone(&end) }, Replies { queue, end })
}

impl Sender {
    /// Ends the stream; what is queued is delivered first.
    pub(super) fn end(self, why: Status) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

impl Stream for Replies {
    type Item = Result<Reply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(context).map(|next| match next {
            Some(reply) => Some(Ok(reply)),
            None => self.end.lock().unwrap_or_else(PoisonError::into_inner).take().map(Err),
        })
    }
}

/// Writes what was encoded before.
#[derive(Default)]
struct EncodedCodec;

struct AsItIs;

impl Codec for EncodedCodec {
    type Encode = Reply;
    type Decode = WatchRequest;
    type Encoder = AsItIs;
    type Decoder = ProstDecoder<WatchRequest>;

    fn encoder(&mut self) -> AsItIs {
        AsItIs
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchReply, WatchRequest>::default().decoder()
    }
}

impl Encoder for AsItIs {
    type Item = Reply;
    type Error = Status;

    fn encode(&mut self, Reply(parts): Reply, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(parts.iter().map(Bytes::len).sum());
        parts.into_iter().for_each(|part| buffer.put(part));
        Ok(())
    }
}

/// `pflex.v1.Map`.
#[derive(Clone)]
pub(in crate::api) struct MapService(pub(in crate::api) Api);

impl NamedService for MapService {
    const NAME: &'static str = "pflex.v1.Map";
}

struct Watch(Api);

impl ServerStreamingService<WatchRequest> for Watch {
    type Response = Reply;
    type ResponseStream = Replies;
    type Future = std::future::Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<WatchRequest>) -> Self::Future {
        std::future::ready(self.0.watch(request))
    }
}

impl<B> Service<http::Request<B>> for MapService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != WATCH {
            return Box::pin(std::future::ready(Ok(Status::unimplemented("no such method").into_http())));
        }
        let watch = Watch(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(EncodedCodec).max_decoding_message_size(REQUEST_BYTES);
            Ok(grpc.server_streaming(watch, request).await)
        })
    }
}
