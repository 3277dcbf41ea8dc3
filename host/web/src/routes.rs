//! Every address there is, in one table: [`router`]. Handlers parse, call and render; they decide nothing.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, patch, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::error::{self, WebError};
use crate::pages;
use crate::state::AppState;

mod builds;
mod bundles;
mod cache;
mod dead_letters;
mod deliveries;
mod evaluations;
mod health;
mod internal;
mod overview;
mod plugins;
mod projects;
mod signer;
mod webhooks;

/// No inline script or style, nothing from elsewhere, no frames, no forms to elsewhere.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                                       connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The whole HTTP side of a node.
pub fn router(state: AppState) -> Router {
    let cache = Router::new()
        .route("/", get(cache::landing))
        .route("/nix-cache-info", get(cache::nix_cache_info))
        .route("/{file}", get(cache::root_file))
        .route("/nar/{file}", get(cache::nar))
        .route("/log/{drv}", get(cache::log))
        .route("/drv/{file}", get(cache::drv));
    let signer = Router::new()
        .route("/api/upload-slots", post(signer::upload_slots))
        .route("/api/drv-upload", post(signer::drv_upload))
        .route("/api/sources-complete", post(signer::sources_complete))
        .route("/api/build-complete", post(signer::build_complete))
        .route("/api/build-failed", post(signer::build_failed));
    let api = Router::new()
        .route("/api/v1/evaluations/{id}", get(evaluations::show))
        .route("/api/v1/evaluations/{id}/head", get(evaluations::head))
        .route("/api/v1/evaluations/{id}/log", get(evaluations::log))
        .route("/api/v1/evaluations/{id}/waits", get(evaluations::waits))
        .route("/api/v1/evaluations/{id}/cancel", post(evaluations::cancel))
        .route("/api/v1/evaluations/{id}/rebuild-failed", post(evaluations::rebuild_failed))
        .route("/api/v1/builds/find", get(builds::find))
        .route("/api/v1/builds/{id}", get(builds::show))
        .route("/api/v1/builds/{id}/log", get(builds::log))
        .route("/api/v1/builds/{id}/rebuild", post(builds::rebuild))
        .route("/api/v1/builds/{id}/cancel", post(builds::cancel))
        .route("/api/v1/projects", get(overview::projects).post(projects::add))
        .route("/api/v1/projects/{*name}", patch(projects::set))
        .route("/api/v1/project-settings", get(projects::list))
        .route("/api/v1/repositories", get(projects::repositories))
        .route("/api/v1/deliveries", get(deliveries::list))
        .route("/api/v1/deliveries/replay", post(deliveries::replay_dead))
        .route("/api/v1/deliveries/{id}/replay", post(deliveries::replay))
        .route("/api/v1/dead-letters", get(dead_letters::list))
        .route("/api/v1/dead-letters/{kind}/{id}/replay", post(dead_letters::replay))
        .route("/api/v1/plugins", get(plugins::list))
        .route("/api/v1/queue", get(overview::queue))
        .route("/api/v1/status", get(overview::status))
        .route("/api/v1/nodes", get(overview::nodes))
        .layer(middleware::from_fn_with_state(state.clone(), forget_what_changed))
        // Shows in lists a moment later: if each push made everything be read again, memories would be of no use.
        .route("/api/v1/bundles", post(bundles::store))
        .route("/api/v1/evaluations", get(evaluations::list).post(evaluations::create));
    let pages = Router::new()
        .route("/ci", get(|| async { Redirect::permanent("/ci/") }))
        .route("/ci/", get(pages::home::show))
        .route("/ci/queue", get(pages::queue::show))
        .route("/ci/nodes", get(pages::nodes::show))
        .route("/ci/settings/projects", get(pages::settings::projects))
        .route("/ci/settings/deliveries", get(pages::forges::deliveries))
        .route("/ci/settings/dead-letters", get(pages::forges::dead_letters))
        .route("/ci/assets/{file}", get(pages::assets::show))
        .route("/ci/{*path}", get(pages::dispatch));
    // Forges, and other nodes.
    let machines = Router::new()
        .route("/webhook/{forge}", post(webhooks::take))
        .route("/internal/clone-credential", post(internal::clone_credential));
    let health = Router::new().route("/health", get(health::health)).route("/ready", get(health::ready));
    surround(cache.merge(signer).merge(api).merge(pages).merge(machines).merge(health), state)
}

/// Who changed something sees it at once, whatever was read for others before.
async fn forget_what_changed(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let may_change = !request.method().is_safe();
    let response = next.run(request).await;
    if may_change && response.status().is_success() {
        state.forget();
    }
    response
}

/// What holds for every address: nothing found, nothing allowed, panics, errors in the client's form, headers.
fn surround(routes: Router<AppState>, state: AppState) -> Router {
    routes
        .fallback(|| async { WebError::not_found("there is nothing at this address") })
        .method_not_allowed_fallback(|| async { WebError::method_not_allowed() })
        .layer(CatchPanicLayer::custom(|payload: Box<dyn std::any::Any + Send>| {
            WebError::from_panic(&*payload).into_response()
        }))
        .layer(middleware::from_fn_with_state(state.clone(), error::answer))
        .layer(header_layer(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .layer(header_layer(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header_layer(header::REFERRER_POLICY, "same-origin"))
        .layer(header_layer(header::X_FRAME_OPTIONS, "DENY"))
        .with_state(state)
}

fn header_layer(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

#[cfg(test)]
mod tests;
