//! Reads a whole export over several connections with many requests in flight, and says how
//! fast that was: `nbd-read-throughput URI [CONNECTIONS [IN-FLIGHT [REQUEST-KIB]]]`.

use std::error::Error;
use std::time::Instant;

use libnbd::{Builder, Endpoint, Handle, Reply};

/// One read in this many bytes is handed to each connection in turn.
const STRIPE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let uri = args
        .next()
        .ok_or("usage: nbd-read-throughput URI [CONNECTIONS [IN-FLIGHT [REQUEST-KIB]]]")?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |word| word.parse());
    let (connections, depth, request_kib) = (number(4)?, number(16)?, number(256)?);
    if connections == 0 || depth == 0 || request_kib == 0 {
        return Err("the numbers must be positive".into());
    }

    let start = Instant::now();
    let endpoint = Endpoint::uri(uri);
    let mut handles = vec![Builder::new().connect(&endpoint)?];
    let size = handles[0].size();
    while handles.len() < connections && handles[0].flags().multi_conn {
        handles.push(Builder::new().connect(&endpoint)?);
    }
    let connections = handles.len() as u64;
    let request_bytes = (request_kib << 10).min(handles[0].block_size().payload_bytes_max());

    let workers: Vec<_> = (0..connections)
        .zip(handles)
        .map(|(nth, handle)| {
            let stripes = (nth * STRIPE_BYTES..size).step_by((connections * STRIPE_BYTES) as usize);
            let requests: Vec<(u64, usize)> = stripes
                .flat_map(|stripe| {
                    let end = (stripe + STRIPE_BYTES).min(size);
                    (stripe..end)
                        .step_by(request_bytes)
                        .map(move |at| (at, request_bytes.min((end - at) as usize)))
                })
                .collect();
            std::thread::spawn(move || read_all(handle, &requests, depth))
        })
        .collect();
    let mut hole_bytes = 0;
    for worker in workers {
        hole_bytes += worker.join().map_err(|_| "a reader panicked")??;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{size} bytes ({hole_bytes} in holes) in {seconds:.3} s: {:.0} MB/s; \
         {connections} connections x {depth} in flight x {request_bytes} bytes",
        size as f64 / 1e6 / seconds
    );
    Ok(())
}

/// Makes all requests, `depth` at a time, reusing their buffers; returns the bytes in holes.
fn read_all(
    mut nbd: Handle,
    requests: &[(u64, usize)],
    depth: usize,
) -> Result<u64, libnbd::Error> {
    let mut hole_bytes = 0;
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut requests = requests.iter();
    loop {
        while nbd.outstanding() < depth {
            let Some(&(offset, length)) = requests.next() else {
                break;
            };
            let mut buffer = spare.pop().unwrap_or_default();
            buffer.resize(length, 0);
            nbd.submit_read(offset, buffer)?;
        }
        let Some(completion) = nbd.wait()? else {
            nbd.shutdown(None)?;
            return Ok(hole_bytes);
        };
        if let Reply::Read(reply) = completion.result? {
            if reply.is_hole() {
                hole_bytes += reply.bytes.len() as u64;
            }
            spare.push(reply.bytes);
        }
    }
}
