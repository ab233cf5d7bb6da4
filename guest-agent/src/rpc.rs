//! The ttrpc service of agent.proto: translates messages to calls of the sandbox and back, nothing else.
//!
//! ttrpc's server drops a handler when its connection breaks. What changes the sandbox therefore runs as a task of
//! its own ([`detached`]), so that a broken connection never leaves a container half made.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

use crate::devices::Devices;
use crate::errors::{AgentError, Result};
use crate::proto::agent::*;
use crate::proto::agent_ttrpc::Agent;
use crate::sandbox::Sandbox;
use crate::stdio::Wanted;
use crate::{clock, network};

/// A poll is answered after this long at most, so that an abandoned one does not stay.
const LONGEST_POLL: Duration = Duration::from_secs(60);

pub struct Service {
    pub sandbox: Arc<Sandbox>,
    pub devices: Devices,
    /// Called after work of a helper, when there is time for preparations.
    pub on_idle: Arc<dyn Fn() + Send + Sync>,
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        Err(AgentError::internal(format!(
            "The request was not finished: {error}"
        )))
    })
}

#[async_trait]
impl Agent for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.sandbox.create_sandbox(&request)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        _: DestroySandboxRequest,
    ) -> ttrpc::Result<DestroySandboxResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        detached(async move { sandbox.destroy().await }).await?;
        Ok(DestroySandboxResponse::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        let wanted = wanted(request.stdio.as_ref());
        let pid = detached(async move {
            sandbox
                .create_container(&request.container_id, &request.oci_spec, wanted)
                .await
        })
        .await?;
        Ok(CreateContainerResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        let started =
            detached(async move { sandbox.start(&request.container_id, &request.exec_id).await })
                .await;
        (self.on_idle)();
        Ok(StartContainerResponse {
            pid: started?,
            ..Default::default()
        })
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        self.sandbox.exec(
            &request.container_id,
            &request.exec_id,
            &request.oci_process,
            wanted(request.stdio.as_ref()),
        )?;
        Ok(ExecProcessResponse::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<SignalProcessResponse> {
        self.sandbox.signal(
            &request.container_id,
            &request.exec_id,
            request.signal,
            request.all,
        )?;
        Ok(SignalProcessResponse::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let exit = self
            .sandbox
            .wait(&request.container_id, &request.exec_id)
            .await?;
        Ok(WaitProcessResponse {
            exit: Some(exit).into(),
            ..Default::default()
        })
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: TtyWinResizeRequest,
    ) -> ttrpc::Result<TtyWinResizeResponse> {
        self.sandbox.resize(
            &request.container_id,
            &request.exec_id,
            request.rows,
            request.columns,
        )?;
        Ok(TtyWinResizeResponse::new())
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> ttrpc::Result<CloseStdinResponse> {
        self.sandbox
            .close_stdin(&request.container_id, &request.exec_id, request.after_bytes)?;
        Ok(CloseStdinResponse::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        Ok(ListProcessesResponse {
            processes: self.sandbox.list_processes(&request.container_id)?,
            ..Default::default()
        })
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        Ok(self.sandbox.stats(&request.container_id)?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<PauseContainerResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        detached(async move { sandbox.freeze(&request.container_id, true).await }).await?;
        Ok(PauseContainerResponse::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<ResumeContainerResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        detached(async move { sandbox.freeze(&request.container_id, false).await }).await?;
        Ok(ResumeContainerResponse::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        detached(async move {
            sandbox
                .update(&request.container_id, &request.linux_resources)
                .await
        })
        .await?;
        Ok(UpdateContainerResponse::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        if request.exec_id.is_empty() {
            let sandbox = Arc::clone(&self.sandbox);
            detached(async move { sandbox.remove_container(&request.container_id).await }).await?;
        } else {
            self.sandbox
                .remove_exec(&request.container_id, &request.exec_id)?;
        }
        Ok(RemoveContainerResponse::new())
    }

    async fn get_events(
        &self,
        _: &TtrpcContext,
        request: GetEventsRequest,
    ) -> ttrpc::Result<GetEventsResponse> {
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(LONGEST_POLL);
        Ok(GetEventsResponse {
            events: self.sandbox.events.after(request.after_seq, wait).await,
            ..Default::default()
        })
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: ListInterfacesRequest,
    ) -> ttrpc::Result<ListInterfacesResponse> {
        Ok(ListInterfacesResponse {
            interfaces: network::list_interfaces()?,
            ..Default::default()
        })
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> ttrpc::Result<UpdateInterfaceResponse> {
        network::update_interface(&request.interface)?;
        Ok(UpdateInterfaceResponse::new())
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: UpdateRoutesRequest,
    ) -> ttrpc::Result<UpdateRoutesResponse> {
        network::update_routes(&request.routes, &request.neighbors)?;
        Ok(UpdateRoutesResponse::new())
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> ttrpc::Result<SetGuestDateTimeResponse> {
        clock::set_wall_ns(request.wall_clock_ns)?;
        Ok(SetGuestDateTimeResponse::new())
    }

    async fn bind_device(
        &self,
        _: &TtrpcContext,
        request: BindDeviceRequest,
    ) -> ttrpc::Result<BindDeviceResponse> {
        let bound = self.devices.bind(&request.device).await;
        (self.on_idle)();
        Ok(BindDeviceResponse {
            device: Some(bound?).into(),
            ..Default::default()
        })
    }

    async fn unbind_device(
        &self,
        _: &TtrpcContext,
        request: UnbindDeviceRequest,
    ) -> ttrpc::Result<UnbindDeviceResponse> {
        let unbound = self.devices.unbind(&request.device).await;
        (self.on_idle)();
        unbound?;
        Ok(UnbindDeviceResponse::new())
    }
}

fn wanted(request: Option<&Stdio>) -> Wanted {
    request.map(Wanted::from).unwrap_or_default()
}
