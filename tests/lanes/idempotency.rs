//! 64 posts at once with one `Idempotency-Key` make one job.

use std::sync::{Arc, Barrier};

use serde_json::json;

use crate::support::TestServer;
use crate::support::lane::Lane;
use crate::support::raw_http::Connection;
use crate::support::submitters::{listed, named_spec};

const POSTS: usize = 64;

fn post_together(lane: Lane) {
    let server = TestServer::with_slots(0);
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let address = server.address();
    let mut first_answers = 0;
    for round in 0..lane.count {
        let (key, body) = (format!("round-{round}"), named_spec("once", &dataset));
        let together = Arc::new(Barrier::new(POSTS));
        let posts: Vec<_> = (0..POSTS)
            .map(|_| {
                let (together, key, body) = (together.clone(), key.clone(), body.clone());
                std::thread::spawn(move || {
                    let mut connection = Connection::new(address);
                    connection.get("/healthz").unwrap();
                    together.wait();
                    // In flight is an answer, too: the client asks again.
                    loop {
                        let headers = [("idempotency-key", key.as_str())];
                        let reply = connection.post_json("/v1/jobs", &headers, &body).unwrap();
                        if reply.status != 409 {
                            return reply;
                        }
                    }
                })
            })
            .collect();
        let replies: Vec<_> = posts.into_iter().map(|post| post.join().unwrap()).collect();
        assert!(replies.iter().all(|reply| reply.status == 201));
        let ids: Vec<_> = replies.iter().map(|r| r.json()["id"].clone()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let replayed = |reply: &&crate::support::raw_http::Reply| {
            reply.header("idempotency-replayed") == Some("true")
        };
        assert_eq!(replies.iter().filter(replayed).count(), POSTS - 1);
        first_answers += POSTS - replies.iter().filter(replayed).count();

        let other = named_spec("another", &dataset);
        let headers = [("idempotency-key", key.as_str())];
        let refused = Connection::new(address).post_json("/v1/jobs", &headers, &other);
        let refused = refused.unwrap();
        assert_eq!(refused.status, 422);
        assert_eq!(refused.json()["code"], json!("idempotency_key_reused"));
    }
    let there = listed(address).len();
    println!(
        "{} keys, {POSTS} posts each at once: {there} jobs, {first_answers} first answers, the rest replays",
        lane.count
    );
    assert_eq!(there as u64, lane.count);
}

#[test]
fn one_key_makes_one_job() {
    post_together(Lane::short("idempotency", 3));
}

#[test]
#[ignore = "lane: 200 keys"]
fn lane_idempotency() {
    post_together(Lane::long("idempotency", 200));
}
