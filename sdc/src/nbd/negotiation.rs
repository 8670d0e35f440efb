//! Drives the handshake of one connection.
//!
//! Bounded in every direction: an option is buffered up to its limit, answers are sent before the next option is looked at
//! (a client that pipelines LIST and does not read is made to wait by TCP), long lists leave in pieces, and the whole must
//! end within the handshake's time.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connection::ConnectionError;
use super::handshake::{Agreed, Event, Handshake, Tls};
use super::wire::Violation;
use crate::block::{Export, Exports, OpenError};

/// Exports of a list that are put together before they are sent.
const LIST_PIECE: usize = 256;

/// How a negotiation ended.
pub(super) enum Negotiated<B, P> {
    /// The client left.
    Left,
    /// The stream is to become a TLS stream, over which this handshake goes on.
    StartTls(Handshake),
    /// An export was opened.
    Opened(Export<B>, Agreed, P),
}

/// Negotiates until an export is opened; `begun` is where an earlier stream ended. `admit` gives a place to the connection when it is
/// about to enter the transmission phase.
pub(super) async fn negotiate<S, E, P>(
    stream: &mut S,
    input: &mut BytesMut,
    exports: &E,
    (tls, begun): (Tls, Option<Handshake>),
    admit: impl Fn() -> Option<P>,
) -> Result<Negotiated<E::Backend, P>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut output = BytesMut::new();
    let mut handshake = begun.unwrap_or_else(|| Handshake::begin(tls, &mut output));
    loop {
        send(stream, &mut output).await?;
        match handshake.advance(input, &mut output) {
            Ok(Event::List) => {
                for piece in exports.list().chunks(LIST_PIECE) {
                    handshake.listed(piece, &mut output);
                    send(stream, &mut output).await?;
                }
                handshake.list_ends(&mut output);
            }
            Ok(Event::Meta(request)) => {
                let outcome = exports.open(&request.name).await;
                handshake.found(&request, outcome.as_ref().map(|export| &export.info), &mut output);
            }
            Ok(Event::Open(request)) => {
                let outcome = exports.open(&request.name).await;
                let mut place = None;
                let outcome = outcome.and_then(|export| {
                    if request.enters_transmission() {
                        place = admit();
                        let reason = "the server serves as many connections as it may".to_owned();
                        let full = OpenError::Refused { name: request.name.clone(), reason };
                        place.as_ref().ok_or(full)?;
                    }
                    Ok(export)
                });
                handshake.opened(&request, outcome.as_ref().map(|export| &export.info), &mut output)?;
                if let (Ok(export), Some(place)) = (outcome, place) {
                    send(stream, &mut output).await?;
                    return Ok(Negotiated::Opened(export, handshake.agreed(), place));
                }
            }
            Ok(Event::StartTls) => {
                send(stream, &mut output).await?;
                return Ok(Negotiated::StartTls(handshake));
            }
            Ok(Event::Close) => {
                send(stream, &mut output).await?;
                stream.shutdown().await?;
                return Ok(Negotiated::Left);
            }
            Ok(Event::NeedInput) => {
                send(stream, &mut output).await?;
                if stream.read_buf(input).await? == 0 {
                    return if input.is_empty() { Ok(Negotiated::Left) } else { Err(Violation::Truncated.into()) };
                }
            }
            Err(violation) => {
                // What was answered before it is still sent: it may say why.
                send(stream, &mut output).await?;
                return Err(violation.into());
            }
        }
    }
}

/// Sends all of it, also out of what a TLS stream holds.
async fn send(stream: &mut (impl AsyncWrite + Unpin), output: &mut BytesMut) -> std::io::Result<()> {
    stream.write_all(output).await?;
    output.clear();
    stream.flush().await
}
