//! Groups of all sizes, that do nothing but wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ranks::{config, each, group};

#[tokio::test]
async fn nobody_passes_a_barrier_before_everybody_is_there() {
    for size in 1..=8 {
        let ranks = group(size, &config()).await;
        let arrived = Arc::new(AtomicUsize::new(0));
        let ranks = each(ranks, |rank| {
            let arrived = Arc::clone(&arrived);
            async move {
                for round in 1..=20 {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    rank.barrier().await.unwrap();
                    assert!(arrived.load(Ordering::SeqCst) >= round * size);
                }
                rank
            }
        })
        .await;
        for left in each(ranks, |rank| rank.destroy()).await {
            left.unwrap();
        }
    }
}
