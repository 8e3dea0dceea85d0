//! The images of the upstream e2e suite. Its pods call many small tools, so all but a few stand on one Debian base.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use super::archive::Image;
use super::layer::LayerWriter;
use super::{AGNHOST, ARCHIVE, KEY_VERSION, PART, PAUSE, finish_archive, identity, program_layer};
use crate::cache::{Key, Part};
use crate::programs::{ConformancePrograms, Programs};
use crate::rootfs;

/// What the suite calls its images. `e2e.test --list-images` prints these names.
const AGNHOST_OLD: &str = "registry.k8s.io/e2e-test-images/agnhost:2.55";
const NGINX: [&str; 2] =
    ["registry.k8s.io/e2e-test-images/nginx:1.27-0", "registry.k8s.io/e2e-test-images/nginx:1.15-4"];
const REGRESSION: &str = "registry.k8s.io/e2e-test-images/regression-issue-74839:1.4";
const SHELLS: [&str; 4] = [
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
    "registry.k8s.io/e2e-test-images/busybox:1.36.1-1",
    "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
    "registry.k8s.io/build-image/distroless-iptables:v0.9.6",
];

/// Makes sure that the images of the upstream e2e suite are there, in one archive. They take the place of the small ones of
/// [`super::ensure`] under the same names.
///
/// # Errors
/// When the Debian base cannot be made, the cache folder cannot be written or a program is not there.
pub fn conformance_images(
    programs: &Programs,
    conformance: &ConformancePrograms,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf> {
    let base = rootfs::ensure(progress)?;
    let (agnhost, coredns) = (programs.path("agnhost"), programs.path("coredns"));
    let regression = conformance.bin.join("regression-issue-74839");
    let mut key = Key::new("conformance images", KEY_VERSION).with(&base.digest);
    for program in [&agnhost, &coredns, &regression] {
        key = key.with(identity(program)?);
    }
    let part = Part::lock(PART, progress)?;
    let folder = part.make_folder(&format!("conformance-{}", key.finish()), |folder| {
        progress("making the images of the upstream e2e suite");
        let mut server = LayerWriter::create(&folder.join("server.layer"))?;
        server.folder("uploads", 0o755)?;
        for (path, mode, source) in [
            ("agnhost", 0o755, agnhost.clone()),
            ("localhost.crt", 0o644, conformance.files.join("localhost.crt")),
            ("localhost.key", 0o644, conformance.files.join("localhost.key")),
        ] {
            server.file(path, mode, &source)?;
        }
        let server = server.finish()?;
        let mut dns = LayerWriter::create(&folder.join("dns.layer"))?;
        dns.file("coredns", 0o755, &coredns)?;
        let dns = dns.finish()?;
        let regression = program_layer(folder, "regression", &regression)?;

        let image = |reference: &str, layers, entrypoint, command| Image {
            reference: reference.to_owned(),
            layers,
            entrypoint,
            command,
            labels: BTreeMap::new(),
        };
        let mut images = vec![
            image(PAUSE, vec![&server], vec!["/agnhost", "pause"], vec![]),
            image(REGRESSION, vec![&regression], vec!["/regression"], vec![]),
        ];
        for reference in [AGNHOST, AGNHOST_OLD] {
            images.push(image(reference, vec![&base, &dns, &server], vec!["/agnhost"], vec!["pause"]));
        }
        for reference in NGINX {
            images.push(image(reference, vec![&base, &server], vec!["/agnhost", "netexec", "--http-port=80"], vec![]));
        }
        images.extend(SHELLS.map(|reference| image(reference, vec![&base], vec![], vec!["sh"])));
        finish_archive(&images, &[&server, &dns, &regression], folder)
    })?;
    Ok(folder.join(ARCHIVE))
}
