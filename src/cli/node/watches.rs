//! The watches that several parts of the agent share, one for each kind, and who reads which.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::Client;
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};

use super::NodeError;
use super::parts::{Parts, ends};
use crate::datapath;
use crate::model::link::Links;
use crate::netlink::nf_tables::Listener;
use crate::runtime::watch::{Sink, forward, forward_many, sink};
use crate::speaker::watch::{Inbox, SLICES};

/// Events that may wait for a component's loop; a watch that is faster waits.
const QUEUE: usize = 1024;

/// The watches that several parts share, one for each kind.
#[derive(Default)]
pub(super) struct Watches {
    pub(super) nodes: Vec<Box<dyn Sink<core::Node>>>,
    services: Vec<Box<dyn Sink<core::Service>>>,
    slices: Vec<Box<dyn Sink<discovery::EndpointSlice>>>,
}

impl Watches {
    /// What the speaker reads.
    pub(super) fn for_speaker(&mut self) -> Inbox {
        let inbox = Inbox::default();
        self.nodes.push(inbox.nodes());
        self.services.push(inbox.services());
        self.slices.push(inbox.slices());
        inbox
    }

    /// What the datapath reads.
    pub(super) fn for_datapath(
        &mut self,
        client: &Client,
        links: watch::Receiver<Arc<Links>>,
        listener: Listener,
        parts: &mut Parts,
    ) -> mpsc::Receiver<datapath::watch::Event> {
        let (sender, events) = mpsc::channel(QUEUE);
        self.nodes.push(sink(sender.clone(), datapath::watch::Event::Node));
        self.services.push(sink(sender.clone(), datapath::watch::Event::Service));
        self.slices.push(sink(sender.clone(), datapath::watch::Event::Slice));
        let cidrs = sink(sender.clone(), datapath::watch::Event::ServiceCidr);
        let cidrs = forward(client.clone(), watcher::Config::default(), vec![cidrs]);
        parts.spawn(ends(cidrs, "watch of ServiceCIDRs"));
        let foreign = datapath::foreign::follow(listener, sender.clone());
        parts.spawn(async move { foreign.await.map(|()| "watch of nf_tables").map_err(NodeError::Listener) });
        parts.spawn(ends(follow_addresses(links, sender), "watch of interfaces"));
        events
    }

    /// Starts the watches that parts asked for.
    pub(super) fn start(self, client: &Client, parts: &mut Parts) {
        let everything = watcher::Config::default;
        parts.spawn(ends(forward(client.clone(), everything(), self.nodes), "watch of Nodes"));
        parts.spawn(ends(forward_many(client.clone(), everything(), self.services), "watch of Services"));
        let slices = everything().labels(SLICES);
        parts.spawn(ends(forward_many(client.clone(), slices, self.slices), "watch of EndpointSlices"));
    }
}

/// Tells the datapath which addresses are this machine's.
async fn follow_addresses(mut links: watch::Receiver<Arc<Links>>, sender: mpsc::Sender<datapath::watch::Event>) {
    loop {
        let addresses: BTreeSet<IpAddr> =
            links.borrow_and_update().iter().flat_map(|link| link.addresses.iter().map(|net| net.addr())).collect();
        if sender.send(datapath::watch::Event::LocalAddresses(addresses)).await.is_err()
            || links.changed().await.is_err()
        {
            return;
        }
    }
}
