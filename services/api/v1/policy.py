"""The tenant's content policy: the terms that it refuses, and what it says to a text."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from services.api import openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.model.policy_requests import CheckRequest, TermRequest
from services.core.policy import policies, terms

router = APIRouter(route_class=TenantRoute)


class PolicyTerm(BaseModel):
    """`folded` is what prompts are compared with. `created_by` is an actor."""

    id: str
    object: Literal["policy.term"] = "policy.term"
    term: str
    folded: str
    created_by: str
    created_at: Moment


class PolicyTermPage(BaseModel):
    data: list[PolicyTerm]
    next_cursor: str | None


class PolicyTermRemoved(BaseModel):
    id: str
    object: Literal["policy.term"] = "policy.term"
    deleted: Literal[True] = True


class PolicyCheck(BaseModel):
    """`reason` is null if the text is not refused. `terms` are the tenant's terms that it holds, and `listed_terms`
    those of the installation's list."""

    object: Literal["policy.check"] = "policy.check"
    refused: bool
    reason: str | None
    terms: list[str]
    listed_terms: list[str]


@router.get("/policy/terms", response_model=PolicyTermPage)
def list_policy_terms(
    context: ContextDep, tenant: Tenant, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The terms that the tenant's content policy refuses, in the order of their folding."""
    listing = f"policy-terms/{tenant}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = terms.page(connection, tenant, after=after, limit=limit + 1)
    page = found[:limit]
    more = pagination.encode_name(context.settings.secret, listing, page[-1].folded) if len(found) > limit else None
    return PolicyTermPage(data=[_shown(term) for term in page], next_cursor=more)


@router.post(
    "/policy/terms",
    status_code=201,
    response_model=PolicyTerm,
    responses={200: {"model": PolicyTerm, "description": "A term that folds to the same words is there already."}},
    openapi_extra=openapi.body(TermRequest),
)
def add_policy_term(context: ContextDep, tenant: Tenant, response: Response, body: json_object.Small) -> Any:
    """Adds a term. From the next submission on, a prompt that has it is refused. Repeating this is not an error."""
    asked = json_object.parse(TermRequest, body, TermRequest.ALLOWED)
    with context.database.begin(tenant) as connection:
        term, is_new = terms.add(connection, tenant, asked.term)
    if not is_new:
        response.status_code = 200
    return _shown(term)


@router.delete("/policy/terms/{term_id}", response_model=PolicyTermRemoved)
def remove_policy_term(context: ContextDep, tenant: Tenant, term_id: str) -> Any:
    """Removes a term."""
    with context.database.begin(tenant) as connection:
        terms.remove(connection, tenant, terms.parse_id(term_id))
    return PolicyTermRemoved(id=term_id)


@router.post("/policy/check", response_model=PolicyCheck, openapi_extra=openapi.body(CheckRequest))
async def check_policy(context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """Says whether a prompt with this text would be refused, and by which terms. Nothing is recorded."""
    asked = json_object.parse(CheckRequest, body, CheckRequest.ALLOWED)
    return await context.submissions.run(tenant, _check, context, tenant, asked.text)


def _check(context: Context, tenant: int, text: str) -> PolicyCheck:
    with context.database.read(tenant) as connection:
        policy = policies.of_tenant(context.settings, connection, tenant)
    [refusal] = policy.refusals([text])
    own, listed = policy.terms_in(text)
    reason = None if refusal is None else f"The prompt {refusal}."
    return PolicyCheck(refused=refusal is not None, reason=reason, terms=own, listed_terms=listed)


def _shown(term: terms.Term) -> PolicyTerm:
    return PolicyTerm(
        id=terms.public_id(term.id),
        term=term.term,
        folded=term.folded,
        created_by=term.created_by,
        created_at=term.created_at,
    )
