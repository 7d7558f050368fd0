//! Tensors on a device.

use half::bf16;
use kvpipe::device::{CudaDevice, Location};
use kvpipe::tensor::Payload;
use kvpipe::{DType, Error, Pipe, PipeConfig, Tensor};

use crate::support::{content, device_tensor, on_device, on_gpu};

#[test]
fn a_tensor_goes_to_a_device_and_to_another_and_back() {
    let name = "tensors::a_tensor_goes_to_a_device_and_to_another_and_back";
    on_gpu(name, "devices=2", async |device| {
        let host = Tensor::from_slice([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(bf16::from_f32)).unwrap();
        assert_eq!((host.location(), host.device_buffer()), (Location::Cpu, None));
        assert_eq!(host.to_host().await.unwrap().bytes().unwrap().as_ptr(), host.bytes().unwrap().as_ptr());
        let there = host.to_device(&device).await.unwrap();
        assert_eq!((there.dtype(), there.shape(), there.byte_len()), (DType::BFloat16, host.shape(), 12));
        assert_eq!(there.location(), Location::Cuda(0));
        assert_eq!(there.to_device(&device).await.unwrap(), there, "the same memory");
        let other = CudaDevice::open(1).unwrap();
        let beyond = there.to_device(&other).await.unwrap();
        assert_eq!(beyond.location(), Location::Cuda(1));
        assert_eq!(beyond.to_host().await.unwrap(), host);
        let empty = Tensor::from_slice([0, 3], &[0_u8; 0]).unwrap();
        assert_eq!(empty.to_device(&device).await.unwrap().to_host().await.unwrap(), empty);
    });
}

#[test]
fn the_host_cant_look_into_a_device_and_says_what_to_do() {
    let name = "tensors::the_host_cant_look_into_a_device_and_says_what_to_do";
    on_gpu(name, "", async |device| {
        let tensor = device_tensor(&device, 12, 1).await;
        let said = "a tensor on cuda:0 has no bytes in host memory; copy it with to_host";
        for refused in
            [tensor.bytes().map(drop), tensor.as_slice::<u8>().map(drop), tensor.to_vec::<u8>().map(drop)]
        {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Misuse(_)), "{error:?}");
            assert_eq!(error.to_string(), said);
        }
        assert_eq!(format!("{tensor:?}"), "Tensor(uint8 [12], 12 bytes, on cuda:0)");
        let Payload::Device(buffer) = tensor.payload() else { panic!("{tensor:?}") };
        let shown = format!("DeviceBuffer(12 bytes at {:#x} of cuda:0)", buffer.address());
        assert_eq!(format!("{:?}", tensor.payload()), shown);
        let error = Tensor::on_device(DType::Float32, [2], buffer.clone()).unwrap_err();
        assert_eq!(error.to_string(), "a tensor float32 [2] takes 8 bytes, not 12");
    });
}

#[test]
fn device_tensors_are_equal_where_they_are_the_same_memory() {
    let name = "tensors::device_tensors_are_equal_where_they_are_the_same_memory";
    on_gpu(name, "", async |device| {
        let (one, other) = (on_device(&device, 8, 1).await, on_device(&device, 8, 1).await);
        let tensor = |buffer| Tensor::on_device(DType::UInt8, [8], buffer).unwrap();
        assert_eq!(tensor(one.clone()), tensor(one.clone()));
        assert_ne!(tensor(one.clone()), tensor(other));
        assert_ne!(tensor(one.clone()), Tensor::on_device(DType::Int64, [1], one.clone()).unwrap());
        assert_ne!(tensor(one.clone()), tensor(one).to_host().await.unwrap());
    });
}

#[test]
fn within_a_process_a_device_tensor_is_passed_as_it_is() {
    let name = "tensors::within_a_process_a_device_tensor_is_passed_as_it_is";
    on_gpu(name, "", async |device| {
        let (ours, theirs) = kvpipe::transport::memory::pair();
        let limits = PipeConfig::default().with_buffer_bytes(100);
        let (sender, receiver) =
            (Pipe::spawn(ours, limits.clone()).unwrap(), Pipe::spawn(theirs, limits).unwrap());
        let tensor = device_tensor(&device, 80, 1).await;
        sender.send(Some(tensor.clone())).await.unwrap();
        // Its bytes count, wherever they are.
        assert!(
            matches!(sender.try_send(Some(tensor.clone())), Err(error) if error.to_string().contains("full"))
        );
        assert_eq!(receiver.recv().await.unwrap(), Some(tensor));
        drop((sender, receiver));
    });
}

#[test]
fn a_copy_that_fails_is_an_error_and_loses_nothing() {
    let name = "tensors::a_copy_that_fails_is_an_error_and_loses_nothing";
    on_gpu(name, "fail=cuMemcpyDtoHAsync_v2:2:700", async |device| {
        let tensor = device_tensor(&device, 3 << 20, 1).await;
        let error = tensor.to_host().await.unwrap_err();
        assert!(matches!(error, Error::Cuda { call: "cuMemcpyDtoHAsync_v2", code: 700, .. }), "{error:?}");
        assert!(tensor.to_host().await.unwrap().bytes().unwrap()[..] == content(3 << 20, 1));
    });
}
