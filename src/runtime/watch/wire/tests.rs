//! What an API server answered, once in each language, to the same question.

use std::fmt::Debug;

use k8s_openapi::List;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::super::list::Incoming;
use super::*;
use crate::model::endpoints::EndpointSlice;
use crate::model::service::Service;

fn by_protobuf<T: Wire>(answer: &[u8]) -> (Vec<T>, String) {
    let (mut incoming, mut items) = (Incoming::default(), Vec::new());
    let read = |item: &[u8]| {
        items.push(T::read(item)?);
        Ok(())
    };
    incoming.feed(answer, read).unwrap();
    (items, incoming.finish().unwrap())
}

fn values<'a, T: 'a, V: TryFrom<&'a T, Error: Debug>>(objects: &'a [T]) -> Vec<V> {
    objects.iter().map(|object| V::try_from(object).unwrap()).collect()
}

#[test]
fn services_are_the_same_in_protobuf_as_in_json() {
    let json: List<core::Service> = serde_json::from_slice(include_bytes!("services.json")).unwrap();
    let (objects, version) = by_protobuf::<core::Service>(include_bytes!("services.pb"));
    assert_eq!(Some(version), json.metadata.resource_version);
    assert_eq!(values::<_, Service>(&objects), values::<_, Service>(&json.items));
    let rich = objects.iter().find(|service| service.metadata.name.as_deref() == Some("rich")).unwrap();
    assert!(rich.metadata.deletion_timestamp.is_some());
    // All that is read, whether the model knows it or not.
    for (object, mut expected) in objects.into_iter().zip(json.items) {
        expected.metadata.managed_fields = None;
        expected.metadata.deletion_grace_period_seconds = None;
        let ports = expected.spec.iter_mut().flat_map(|spec| spec.ports.iter_mut().flatten());
        ports.for_each(|port| port.target_port = None);
        assert_eq!(object, expected);
    }
}

#[test]
fn slices_are_the_same_in_protobuf_as_in_json() {
    let json: List<discovery::EndpointSlice> = serde_json::from_slice(include_bytes!("endpoint_slices.json")).unwrap();
    let (objects, version) = by_protobuf::<discovery::EndpointSlice>(include_bytes!("endpoint_slices.pb"));
    assert_eq!(Some(version), json.metadata.resource_version);
    assert_eq!(values::<_, EndpointSlice>(&objects), values::<_, EndpointSlice>(&json.items));
    for (object, mut expected) in objects.into_iter().zip(json.items) {
        expected.metadata.managed_fields = None;
        expected.endpoints.iter_mut().for_each(|endpoint| endpoint.hostname = None);
        assert_eq!(object, expected);
    }
}

#[test]
fn bytes_that_are_cut_short_or_changed_never_panic() {
    for answer in [&include_bytes!("services.pb")[..], include_bytes!("endpoint_slices.pb")] {
        for at in 0..answer.len() {
            let mut changed = answer.to_vec();
            changed[at] ^= 0x55;
            for bytes in [&answer[..at], &changed] {
                let _ = Incoming::default().feed(bytes, |item| {
                    let _ = core::Service::read(item);
                    let _ = discovery::EndpointSlice::read(item);
                    Ok(())
                });
            }
        }
    }
}
