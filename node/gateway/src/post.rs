//! Uploads by forms.

use ashlar_cluster_s3::refusal::{Code, Refusal};

use crate::faults::refused;
use crate::gateway::{Context, Gateway};
use crate::inbound::Inbound;
use crate::reply::Reply;

impl Gateway {
    /// PostObject.
    pub(crate) async fn post_object(
        &self,
        _context: &Context,
        _body: Inbound,
    ) -> Result<Reply, Refusal> {
        refused(Code::NotImplemented, "Uploads by forms are not implemented")
    }
}
