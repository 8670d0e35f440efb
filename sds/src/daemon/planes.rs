//! The control and the management port. Each has its own thread, its own connections and its own requests at a time, so that
//! whatever is asked of one costs neither the other nor the data plane more than a share of the processor.

use std::{io, sync::Arc, time::Duration};

use pflex_common::net;
use pflex_proto::pb::{self, sds_management_server::SdsManagementServer};
use tokio::{net::TcpListener, sync::oneshot};
use tonic::{service::Routes, transport::Server as Grpc};
use tracing::error;

use super::{Server, health::Management};

/// Requests at once on a connection: both ports answer small questions.
const REQUESTS_PER_CONNECTION: usize = 16;
/// A request that waited for so long is of no use any more.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A port that is served by a thread of its own until this is dropped or ended.
pub(super) struct Plane {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Plane {
    /// Serves `routes` on a port, within the limits of every such port.
    fn serve(name: &'static str, listener: TcpListener, routes: Routes) -> io::Result<Self> {
        // It moves to the reactor of the other thread.
        let listener = listener.into_std()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = move || {
            runtime.block_on(async move {
                let served = async {
                    let incoming = net::incoming(TcpListener::from_std(listener)?);
                    limited().add_routes(routes).serve_with_incoming(incoming).await.map_err(io::Error::other)
                };
                tokio::select! {
                    // Dropped is as good as said.
                    _ = stopped => {}
                    ended = served => {
                        if let Err(error) = ended {
                            error!(plane = name, %error, "a plane has stopped serving");
                        }
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name(format!("sds-{name}")).spawn(serving)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Closes the port, and returns when it is closed.
    pub(super) async fn end(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was said by the thread.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

fn limited() -> Grpc {
    Grpc::builder().concurrency_limit_per_connection(REQUESTS_PER_CONNECTION).timeout(TIMEOUT)
}

/// Both ports.
pub(super) async fn serve(
    server: Arc<Server>,
    control: TcpListener,
    management: TcpListener,
) -> io::Result<[Plane; 2]> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        let service =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(pb::DESCRIPTORS);
        service.build_v1().expect("our own descriptors are sound")
    };
    let routes = |health| Routes::new(health).add_service(reflection());
    let managed = routes(health.clone()).add_service(SdsManagementServer::new(Management(server)));
    Ok([Plane::serve("control", control, routes(health))?, Plane::serve("management", management, managed)?])
}
