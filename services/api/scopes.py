"""Which scope each operation takes: the one place where a route declares it.

An operation that is not listed here answers nobody: `authentication` finds no scope for it, and a test says so first.
"""

from services.core.model.scopes import Scope

_OPERATIONS = {
    Scope.VIEW: """
        list_jobs show_job search_job find_images list_images read_image list_requests list_events follow_events
        show_deletion list_chunks list_exports show_export list_export_files read_export_file list_batches
        show_batch list_files show_file read_file list_models show_model show_rates show_overview list_failures
        show_job_rates list_marks list_actions list_workers list_lanes list_jobs_actions show_jobs_action
        list_schedules show_schedule list_schedule_times list_schedule_runs
        list_near_duplicates find_near_duplicates
        list_views show_usage show_retention list_retention_due
        create_sign_in_link
        list_catalogues show_catalogue list_runs show_run estimate_run list_changes list_versions read_manifest
        list_differences list_items read_item
        list_datasets show_dataset list_dataset_versions show_dataset_version list_dataset_files
        compare_dataset_versions read_dataset_file
        list_webhooks show_webhook list_deliveries show_delivery list_webhook_messages
        show_backlog
    """,
    Scope.SUBMIT: """
        submit_job preview_job estimate_job append_chunk finalize_draft retry_job create_export generate_images
        edit_image create_batch create_file create_upload add_part complete_upload cancel_upload
        create_schedule put_schedule run_schedule
        put_catalogue set_catalogue_file run_catalogue
        create_dataset change_dataset add_sources remove_sources export_dataset
    """,
    Scope.OPERATE: """
        change_job mark_images pause_job resume_job cancel_job delete_job cancel_export delete_export
        cancel_batch delete_file drain_worker resume_worker act_on_jobs preview_jobs_action stop_jobs_action
        change_schedule delete_schedule
        save_view change_view delete_view
        delete_catalogue cancel_run publish_version redraw_changes
        delete_dataset cancel_dataset_version delete_dataset_version
        create_webhook change_webhook delete_webhook test_webhook redeliver
    """,
    Scope.ADMIN: """
        list_keys create_key revoke_key
        list_tenants create_tenant show_tenant change_tenant list_tenant_keys create_tenant_key revoke_tenant_key
        delete_tenant show_tenant_deletion
        list_policy_terms add_policy_term remove_policy_term check_policy accept_license
        show_webhook_secret rotate_webhook_secret change_retention
        read_audit
    """,
}
NEEDED = {operation: scope for scope, operations in _OPERATIONS.items() for operation in operations.split()}
