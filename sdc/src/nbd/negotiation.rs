//! Drives the handshake of one connection.
//!
//! Bounded in every direction: an option is buffered up to its limit, answers are sent before the next option is looked at
//! (a client that pipelines LIST and does not read is made to wait by TCP), long lists leave in pieces, and the whole must
//! end within the handshake's time.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connection::ConnectionError;
use super::handshake::{Agreed, Event, Handshake};
use super::wire::Violation;
use crate::block::{Export, Exports, OpenError};

/// Exports of a list that are put together before they are sent.
const LIST_PIECE: usize = 256;

/// Negotiates until an export is opened; `None` when the client left. `admit` gives a place to the connection when it is
/// about to enter the transmission phase.
pub(super) async fn negotiate<S, E, P>(
    stream: &mut S,
    input: &mut BytesMut,
    exports: &E,
    admit: impl Fn() -> Option<P>,
) -> Result<Option<(Export<E::Backend>, Agreed, P)>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut output = BytesMut::new();
    let mut handshake = Handshake::begin(&mut output);
    loop {
        stream.write_all(&output).await?;
        output.clear();
        match handshake.advance(input, &mut output) {
            Ok(Event::List) => {
                for piece in exports.list().chunks(LIST_PIECE) {
                    handshake.listed(piece, &mut output);
                    stream.write_all(&output).await?;
                    output.clear();
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
                    stream.write_all(&output).await?;
                    return Ok(Some((export, handshake.agreed(), place)));
                }
            }
            Ok(Event::Close) => {
                stream.write_all(&output).await?;
                stream.shutdown().await?;
                return Ok(None);
            }
            Ok(Event::NeedInput) => {
                stream.write_all(&output).await?;
                output.clear();
                if stream.read_buf(input).await? == 0 {
                    return if input.is_empty() { Ok(None) } else { Err(Violation::Truncated.into()) };
                }
            }
            Err(violation) => {
                // What was answered before it is still sent: it may say why.
                stream.write_all(&output).await?;
                return Err(violation.into());
            }
        }
    }
}
