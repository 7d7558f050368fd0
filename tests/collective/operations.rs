//! Every operation against a naive reference.

use kvpipe::collective::ReduceOp;
use kvpipe::{DType, Tensor};

use crate::ranks::{config, each, group};

/// What rank `rank` has at `index`: small integers, so that every order of adding gives the same.
fn element(rank: usize, index: usize) -> f32 {
    ((rank * 7 + index * 3) % 11) as f32
}

fn tensor(rank: usize, elements: usize) -> Tensor {
    let values: Vec<_> = (0..elements).map(|index| element(rank, index)).collect();
    Tensor::from_slice([elements], &values).unwrap()
}

fn sum(size: usize, elements: usize) -> Vec<f32> {
    (0..elements).map(|index| (0..size).map(|rank| element(rank, index)).sum()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_reduce_of_any_size_gives_the_sum_at_every_rank() {
    for size in [1, 2, 3, 4, 5, 8] {
        let mut ranks = group(size, &config()).await;
        for elements in [0, 1, 5, 1000, 100_003, 1_000_000] {
            let results = each(ranks, move |group| async move {
                let sum = group.all_reduce(&tensor(group.rank(), elements), ReduceOp::Sum).await.unwrap();
                (group, sum)
            })
            .await;
            ranks = Vec::new();
            for (group, result) in results {
                assert_eq!(result.dtype(), DType::Float32);
                assert!(result.as_slice::<f32>().unwrap() == sum(size, elements), "{size} {elements}");
                ranks.push(group);
            }
        }
        for left in each(ranks, |rank| rank.destroy()).await {
            left.unwrap();
        }
    }
}
