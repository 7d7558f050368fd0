//! The numbers of nccl.h.

use kvpipe::nccl::{DataType, ReduceOp, ResultCode, UniqueId, Version};
use kvpipe::{DType, Error};

#[test]
fn versions_are_read_in_both_of_nccls_codes() {
    for (code, text) in [
        (22703, "2.27.3"),
        (23000, "2.30.0"),
        (23007, "2.30.7"),
        (20905, "2.9.5"),
        (2804, "2.8.4"),
        (2708, "2.7.8"),
        (100_203, "10.2.3"),
        (0, "0.0.0"),
    ] {
        assert_eq!(Version(code).to_string(), text);
    }
    assert!(Version(2804) < Version(20905) && Version(20905) < Version(22703));
}

#[test]
fn result_codes_are_named_as_in_nccl_h_and_unknown_ones_are_numbers() {
    let names: Vec<String> = (-1..10).map(|number| ResultCode(number).to_string()).collect();
    assert_eq!(
        names.join(" "),
        "-1 ncclSuccess ncclUnhandledCudaError ncclSystemError ncclInternalError ncclInvalidArgument \
         ncclInvalidUsage ncclRemoteError ncclInProgress ncclTimeout 9"
    );
}

/// The dtypes that NCCL computes with, its numbers for them (nccl.h 2.27.3), and their bytes.
const COMPUTED: [(DType, DataType, i32, usize); 10] = [
    (DType::Int8, DataType::Int8, 0, 1),
    (DType::UInt8, DataType::Uint8, 1, 1),
    (DType::Int32, DataType::Int32, 2, 4),
    (DType::UInt32, DataType::Uint32, 3, 4),
    (DType::Int64, DataType::Int64, 4, 8),
    (DType::UInt64, DataType::Uint64, 5, 8),
    (DType::Float16, DataType::Float16, 6, 2),
    (DType::Float32, DataType::Float32, 7, 4),
    (DType::Float64, DataType::Float64, 8, 8),
    (DType::BFloat16, DataType::Bfloat16, 9, 2),
];

#[test]
fn dtypes_that_nccl_has_keep_their_type_and_size() {
    for (dtype, data_type, number, bytes) in COMPUTED {
        assert_eq!(DataType::for_reduction(dtype).unwrap(), data_type);
        assert_eq!(DataType::for_transfer(dtype), (data_type, bytes));
        assert_eq!(data_type as i32, number);
    }
}

#[test]
fn all_other_dtypes_travel_as_bytes_and_are_refused_in_reductions() {
    let others = DType::ALL.iter().filter(|dtype| COMPUTED.iter().all(|(one, ..)| one != *dtype));
    let mut count = 0;
    for &dtype in others {
        assert_eq!(DataType::for_transfer(dtype), (DataType::Uint8, 1), "{dtype}");
        let error = DataType::for_reduction(dtype).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        assert_eq!(error.to_string(), format!("NCCL has no reductions of {dtype}"));
        count += 1;
    }
    assert_eq!(count, DType::ALL.len() - COMPUTED.len());
}

#[test]
fn operations_have_the_numbers_of_nccl_h() {
    let all = [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min, ReduceOp::Avg];
    assert_eq!(all.map(|op| op as i32), [0, 1, 2, 3, 4]);
    assert_eq!(ReduceOp::default(), ReduceOp::Sum);
}

#[test]
fn a_unique_id_is_128_bytes_and_nothing_else() {
    let bytes: Vec<u8> = (0..128).collect();
    assert_eq!(UniqueId::from_bytes(&bytes).unwrap().0[..], bytes[..]);
    for wrong in [0, 127, 129] {
        let error = UniqueId::from_bytes(&vec![0; wrong]).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        assert_eq!(error.to_string(), format!("a unique id has 128 bytes, not {wrong}"));
    }
}
