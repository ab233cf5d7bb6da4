//! The stream port: accepts the host's connections, reads and echoes the stream's id, and hands the raw
//! connection to the stream's pump. Whatever does not follow the contract is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::table::StreamTable;
use crate::console::RateLimit;
use crate::descriptor::Descriptor;
use crate::{frame, vsock};

/// A peer has this long to send its id.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time; further connections wait in the backlog.
const MAX_HANDSHAKES: usize = 64;

static REFUSALS: RateLimit = RateLimit::new(5, Duration::from_secs(10));

/// Serves the stream port for the life of the agent.
pub async fn run(listener: Descriptor, table: Arc<StreamTable>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        match vsock::accept(&listener).await {
            Ok(connection) => {
                let table = Arc::clone(&table);
                tokio::spawn(async move {
                    let _place = place;
                    let greeting = tokio::time::timeout(HANDSHAKE, greet(connection, &table));
                    match greeting.await {
                        Ok(Ok(())) => {}
                        Ok(Err(reason)) => REFUSALS.warn(|| format!("Stream refused: {reason}")),
                        Err(_) => REFUSALS.warn(|| "Stream refused: no id in time".to_owned()),
                    }
                });
            }
            Err(error) => {
                REFUSALS.warn(|| format!("Accepting a stream failed: {error}"));
                // Out of descriptors or memory: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn greet(connection: Descriptor, table: &StreamTable) -> Result<(), String> {
    let id = frame::read(&connection)
        .await
        .map_err(|error| error.to_string())?;
    let id = String::from_utf8(id).map_err(|_| "the id is not text".to_owned())?;
    let place = table
        .reserve(&id)
        .ok_or_else(|| format!("{id:?} is not a stream to be connected now"))?;
    frame::write(&connection, id.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    place.send(connection);
    Ok(())
}
